"""What a frozen prefix makes of each row, computed once and kept for every occupant of a session and every epoch.

Each row's states are those of the row alone, without padding: they depend on the row and the base and on nothing
else, so it makes no difference to an outcome who asked first, what was kept, or what had to be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import WeakSet

import torch
import torch.nn.functional as F

from petl_ray.bank import Bank, States
from petl_ray.models import LoadedBase
from petl_ray.tasks import Encoded
from petl_ray.training.rows import Rows
from petl_ray.training.sharing import Sharing

MOST_BYTES = 256 << 20  # of one task's rows, and of all that is kept while nobody new needs the room
PASS_TOKENS = 4096

_Row = tuple[tuple[int, ...], tuple[int, ...] | None]


class Prefix:
    """The states of one task's rows behind the base's first `depth` layers."""

    def __init__(self, prefixes: Prefixes, depth: int, rows: Rows) -> None:
        self.depth, self.size_bytes = depth, 0
        self.users: WeakSet[object] = WeakSet()
        self._prefixes, self._rows = prefixes, rows
        self._kept: dict[_Row, torch.Tensor] = {}

    def states(self, rows: Sequence[Encoded], length: int) -> States:
        """Those of `rows`, padded with zeros to `length` tokens."""
        found = {key: self._kept[key] for row in rows if (key := _key(row)) in self._kept}
        missing = {key: row for row in rows if (key := _key(row)) not in found}
        for part, values in self._prefixes.computed(self.depth, list(missing.values()), self._rows):
            for row, value in zip(part, values, strict=True):
                found[_key(row)] = self._keep(_key(row), value)
        parts = [found[_key(row)] for row in rows]
        return States(self.depth, torch.stack([F.pad(part, (0, 0, 0, length - len(part))) for part in parts]))

    def _keep(self, key: _Row, value: torch.Tensor) -> torch.Tensor:
        size = value.numel() * value.element_size()
        if self._prefixes.make_room(size):
            value = value.clone()  # not a view that would hold its whole pass
            self._kept[key] = value
            self.size_bytes += size
        return value


class Prefixes:
    """The prefixes of one session's tasks. Those that nobody uses any more stay until their room is needed."""

    def __init__(self, bank: Bank, loaded: LoadedBase, sharing: Sharing) -> None:
        self._bank, self._loaded = bank, loaded
        self._most_tokens = min(PASS_TOKENS, sharing.tokens or PASS_TOKENS) if sharing.shared else 0
        self._known: dict[tuple[int, int], Prefix] = {}

    def enter(self, depth: int, rows: Rows, user: object) -> Prefix | None:
        """The prefix of a task's rows for as long as `user` lives; None where there is none, or its states would be too
        many.

        Whether they are follows from the rows and the base alone: the bits of an outcome hang on it.
        """
        width = int(self._loaded.model.config.hidden_size) * self._loaded.compute_dtype.itemsize
        if not depth or rows.tokens * width > MOST_BYTES:
            return None
        prefix = self._known.setdefault((depth, id(rows)), Prefix(self, depth, rows))
        prefix.users.add(user)
        return prefix

    def forget(self, rows: Rows) -> None:
        """Nobody will ask for the states of these again."""
        self._known = {key: prefix for key, prefix in self._known.items() if key[1] != id(rows)}

    def make_room(self, size_bytes: int) -> bool:
        """Whether so much more may be kept; what nobody uses makes way."""
        for key, prefix in list(self._known.items()):
            if self.kept_bytes + size_bytes <= MOST_BYTES:
                break
            if not prefix.users:
                del self._known[key]
        return self.kept_bytes + size_bytes <= MOST_BYTES

    def computed(self, depth: int, encoded: list[Encoded], rows: Rows) -> Iterator[tuple[list[Encoded], torch.Tensor]]:
        """Rows of one length each with their states, as many as may share a pass."""
        encoded.sort(key=lambda row: row.length_tokens)
        start, device = 0, self._loaded.device
        while start < len(encoded):
            length = encoded[start].length_tokens
            most = max(1, self._most_tokens // length)
            part = [row for row in encoded[start : start + most] if row.length_tokens == length]
            batch = rows.task.collate(part, self._loaded.pad_id)
            ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
            extra = {name: value.to(device) for name, value in batch.extra.items()}
            yield part, self._bank.frozen_states(depth, ids, mask, extra).values
            start += len(part)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all states that are kept."""
        return sum(prefix.size_bytes for prefix in self._known.values())


def _key(row: Encoded) -> _Row:
    return row.input_ids, row.token_type_ids
