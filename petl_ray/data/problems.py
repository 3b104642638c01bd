"""What is wrong with the rows of one file: the first ten told, all of them counted."""

from __future__ import annotations

from petl_ray.errors import DataError

_TOLD = 10


class Problems:
    """Collects broken rows of one source; `name` is what people call it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self._told: list[tuple[str, str]] = []

    def add(self, row: int, complaint: str) -> None:
        """Row number `row` (from 1) is broken: `complaint` reads `label: missing`."""
        self.count += 1
        if len(self._told) < _TOLD:
            self._told.append((f"row {row}", complaint))

    def raise_if_any(self) -> None:
        """One DataError for all of them, if there are any."""
        if not self.count:
            return
        if self.count == 1:
            row, complaint = self._told[0]
            raise DataError(f"{self.name} {row}", complaint, do="Mend or remove that row", rows=1)
        lines = [f"\n  {row}: {complaint}" for row, complaint in self._told]
        if self.count > _TOLD:
            lines.append(f"\n  … and {self.count - _TOLD} more")
        raise DataError(self.name, f"{self.count} broken rows{''.join(lines)}", rows=self.count)
