"""Points in time as people write them, as seconds since 1970."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime


def seconds(value: object) -> float:
    """Seconds since 1970 of an ISO 8601 text, a date, or a number (also as text), which is taken as it is.

    Without a time zone it is UTC. Raises ValueError for anything else.
    """
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        try:
            number = float(text)
        except ValueError:
            return seconds(datetime.fromisoformat(text))
        if math.isfinite(number):
            return number
    raise ValueError(f"not a point in time: {value!r}")
