"""Points in time as people write them."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from petl_ray.data.times import seconds


@pytest.mark.parametrize(
    "value",
    ["1970-01-02", "1970-01-02T00:00:00Z", "1970-01-02 02:00+02:00", "86400", 86400, 86400.0, date(1970, 1, 2),
     datetime(1970, 1, 2)],
)  # fmt: skip
def test_one_day_after_the_beginning_is_one_day(value: object) -> None:
    assert seconds(value) == 86400.0


@pytest.mark.parametrize("value", ["", "soon", "nan", float("inf"), True, None, [1]])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        seconds(value)
