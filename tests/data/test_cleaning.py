"""What is taken out does not depend on the order in which it came."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from petl_ray.data.cleaning import at_most, without_copies, without_leaks
from petl_ray.data.rows import Row, _key
from petl_ray.fingerprint import sha256_of

WORDS = st.sampled_from(["a", "A", " a ", "b", "B c", "b  C", "d"])
ROWS = st.lists(st.builds(lambda text, label: Row(_key(text), text, None, label, None), WORDS, st.sampled_from("xyz")))


@given(first=st.text(), second=st.none() | st.text(), label=st.text())
def test_an_id_is_the_sha256_of_the_canonical_content(first: str, second: str | None, label: str) -> None:
    row = Row(_key(first), first, second, label, None)
    assert row.identifier == sha256_of([first, second, label])[:20]


@given(rows=ROWS, seed=st.integers(0, 3))
def test_one_row_of_each_text_stands_whatever_the_order(rows: list[Row], seed: int) -> None:
    kept, copies, conflicts = without_copies(rows)
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    assert without_copies(shuffled) == (kept, copies, conflicts)
    assert len({row.key for row in kept}) == len(kept) == len({row.key for row in rows})
    assert copies == len(rows) - len(kept)
    assert 0 <= conflicts <= copies


def test_the_commonest_label_stands() -> None:
    rows = [Row(_key("t"), "t", None, label, None) for label in ("no", "yes", "yes")]
    assert without_copies(rows) == ([rows[1]], 2, 1)


def test_of_equally_common_labels_the_first_by_name_stands() -> None:
    rows = [Row(_key("t"), "t", None, label, None) for label in ("yes", "no")]
    assert without_copies(rows)[0][0].label == "no"


def test_completions_are_copies_only_with_their_prompt() -> None:
    rows = [Row(_key("p"), "p", completion, "", None) for completion in ("one", "ONE ", "two")]
    assert len(without_copies(rows)[0]) == 2


@given(train=ROWS, validation=ROWS, test=ROWS)
def test_no_text_stands_on_two_sides_and_test_stays_whole(
    train: list[Row], validation: list[Row], test: list[Row]
) -> None:
    sides, lost = without_leaks({"train": train, "validation": validation, "test": test})
    keys = {side: {row.key for row in rows} for side, rows in sides.items()}
    assert sides["test"] == test
    assert not keys["train"] & (keys["test"] | keys["validation"])
    assert not keys["validation"] & keys["test"]
    assert lost == {
        "train": len(train) - len(sides["train"]),
        "validation": len(validation) - len(sides["validation"]),
    }


@given(rows=ROWS, limit=st.integers(1, 5))
def test_a_limit_draws_the_same_rows_whatever_the_order(rows: list[Row], limit: int) -> None:
    assert sorted(at_most(rows, limit)[0]) == sorted(at_most(rows[::-1], limit)[0])
    assert at_most(rows, None) == (rows, 0)
