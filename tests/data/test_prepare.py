"""The whole room: sources in, a Dataset out, the same for the same rows whatever the way."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from petl_ray.data import DataSource, DataSpec, lock, prepare
from petl_ray.errors import DataError, RunCancelled
from petl_ray.fingerprint import fingerprint
from petl_ray.verb import Verb, load
from tests.data.conftest import Kitchen, tickets, write_csv, write_jsonl
from tests.plainstep import PlainStep


def test_the_door_offers_the_verb_even_after_its_module_was_loaded() -> None:
    load("petl_ray.data.prepare:prepare")
    from petl_ray.data import prepare as again

    assert isinstance(again, Verb)


def test_the_door_is_light() -> None:
    code = "import sys, petl_ray.data; print([m for m in ('torch','ray','datasets','pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_rows_come_out_with_id_text_and_label_index(kitchen: Kitchen, tmp_path: Path) -> None:
    dataset = kitchen.prepare(write_jsonl(tmp_path / "t.jsonl", tickets(100)))
    rows = kitchen.rows(dataset)
    assert dataset.labels == ("bug", "refund")
    assert dataset.rows == {side: len(listed) for side, listed in rows.items()}
    assert sum(dataset.rows.values()) == 100
    assert all(0 < dataset.rows[side] < 50 for side in ("validation", "test"))
    for listed in rows.values():
        assert [row["id"] for row in listed] == sorted(row["id"] for row in listed)
        assert all(set(row) == {"id", "text", "label"} for row in listed)
        assert all(dataset.labels[row["label"]] in row["text"] for row in listed)


def test_the_order_of_rows_and_the_place_of_the_file_change_nothing(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [*tickets(80), *tickets(10)]
    first = kitchen.prepare(write_jsonl(tmp_path / "a.jsonl", rows))
    random.Random(1).shuffle(rows)
    (tmp_path / "elsewhere").mkdir()
    second = kitchen.prepare(write_jsonl(tmp_path / "elsewhere" / "b.jsonl", rows))
    assert first.digest == second.digest


def test_every_process_gives_the_same_digest(kitchen: Kitchen, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", tickets(60))
    here = kitchen.prepare(path).digest
    code = (
        "import sys; from pathlib import Path; from petl_ray.data import *; from tests.plainstep import PlainStep\n"
        "spec = lock(DataSource(task='tickets', train=sys.argv[1]))\n"
        "print(prepare(spec, step=PlainStep(Path(sys.argv[2]))).digest)"
    )
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code, str(path), str(tmp_path / f"steps-{seed}")],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert there.stdout.strip() == here


def test_csv_tsv_parquet_and_jsonl_give_one_dataset(kitchen: Kitchen, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = tickets(60)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    paths = [
        write_jsonl(tmp_path / "t.jsonl", rows),
        write_csv(tmp_path / "t.csv", rows),
        write_csv(tmp_path / "t.tsv", rows),
        tmp_path / "t.parquet",
    ]
    assert len({kitchen.prepare(path).digest for path in paths}) == 1


def test_several_files_by_a_pattern_are_read_as_one(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = tickets(60)
    write_jsonl(tmp_path / "part-1.jsonl", rows[:25])
    write_jsonl(tmp_path / "part-2.jsonl", rows[25:])
    whole = kitchen.prepare(write_jsonl(tmp_path / "whole.jsonl", rows))
    assert kitchen.prepare(tmp_path / "part-*.jsonl").digest == whole.digest


def test_prompts_and_completions_are_kept_verbatim(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{"instruction": f"line {number}: ", "output": f" 20{number:02d} EUR\n"} for number in range(50)]
    dataset = kitchen.prepare(write_jsonl(tmp_path / "p.jsonl", rows), task_type="causal_lm")
    found = [row for listed in kitchen.rows(dataset).values() for row in listed]
    assert {(row["prompt"], row["completion"]) for row in found} == {(r["instruction"], r["output"]) for r in rows}
    assert dataset.labels == ()


def test_all_answers_to_one_prompt_stand_on_one_side(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {number // 3}", "completion": f"way {number}"} for number in range(150)]
    dataset = kitchen.prepare(write_jsonl(tmp_path / "p.jsonl", rows), task_type="causal_lm")
    sides = kitchen.rows(dataset)
    prompts = [{row["prompt"] for row in listed} for listed in sides.values()]
    assert sum(dataset.rows.values()) == 150
    assert sum(len(some) for some in prompts) == len(set().union(*prompts)) == 50


def test_pairs_are_read_as_pairs(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{"premise": f"it rains {number}", "hypothesis": "it is wet", "label": number % 2} for number in range(60)]
    dataset = kitchen.prepare(write_jsonl(tmp_path / "p.jsonl", rows))
    assert all(row["text_pair"] == "it is wet" for row in kitchen.rows(dataset)["train"])
    assert dataset.labels == ("0", "1")


def test_pairs_on_one_side_only_are_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{**row, "text_pair": "x"} for row in tickets(30)])
    test = write_jsonl(tmp_path / "b.jsonl", tickets(30, 30))
    with pytest.raises(DataError, match="only train has a text_pair"):
        kitchen.prepare(train, test=str(test))


def test_a_given_test_file_stays_whole_and_what_it_shares_leaves_training(kitchen: Kitchen, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", tickets(60))
    test_rows = [*tickets(10, 55), {"text": "TICKET  3 is about a BUG", "label": "bug"}, *tickets(1, 55)]
    dataset = kitchen.prepare(train, test=str(write_jsonl(tmp_path / "test.jsonl", test_rows)))
    rows, card = kitchen.rows(dataset), kitchen.card(dataset)
    assert len(rows["test"]) == len(test_rows)
    assert len({row["id"] for row in rows["test"]}) == len(test_rows), "equal rows have ids of their own"
    assert sum(card["removed"]["leaked"].values()) == 6
    known = {row["text"].casefold() for row in rows["test"]}
    assert not known & {row["text"].casefold() for row in rows["train"] + rows["validation"]}


def test_no_text_stands_on_two_sides_of_a_split_by_group(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{**row, "user": f"u{number % 17}"} for number, row in enumerate([*tickets(80), *tickets(80)])]
    dataset = kitchen.prepare(write_jsonl(tmp_path / "g.jsonl", rows), split={"by": "group", "column": "user"})
    texts = [{row["text"] for row in listed} for listed in kitchen.rows(dataset).values()]
    assert sum(len(some) for some in texts) == len(set().union(*texts))


def test_the_card_tells_what_was_read_removed_and_left(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [*tickets(40), *tickets(5), {"text": tickets(1)[0]["text"], "label": "bug"}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    dataset = kitchen.prepare(path)
    card = kitchen.card(dataset)
    assert card["read"] == {"train": 46}
    assert card["removed"]["duplicates"] == 6
    assert card["removed"]["conflicting_labels"] == 1
    assert card["sources"] == {"train": lock(DataSource(task="tickets", train=str(path))).train.digest}
    assert {side: facts["rows"] for side, facts in card["sides"].items()} == dataset.rows
    assert card["sides"]["train"]["labels"]["bug"] + card["sides"]["train"]["labels"]["refund"] == dataset.rows["train"]
    assert card["sides"]["train"]["words"] == {"p50": 6, "p90": 6, "p99": 6, "longest": 6}
    assert str(tmp_path) not in json.dumps(card)


def test_a_copy_more_changes_the_card_and_not_the_dataset(kitchen: Kitchen, tmp_path: Path) -> None:
    before = kitchen.prepare(write_jsonl(tmp_path / "a.jsonl", tickets(40)))
    after = kitchen.prepare(write_jsonl(tmp_path / "b.jsonl", [*tickets(40), *tickets(1)]))
    assert before.digest == after.digest
    assert before.traces != after.traces


def test_copies_stay_where_the_plan_keeps_them(kitchen: Kitchen, tmp_path: Path) -> None:
    dataset = kitchen.prepare(write_jsonl(tmp_path / "a.jsonl", [*tickets(40), *tickets(40)]), deduplicate=False)
    rows = [row for listed in kitchen.rows(dataset).values() for row in listed]
    assert len(rows) == len({row["id"] for row in rows}) == 80


def test_a_limit_takes_the_same_rows_whatever_their_order(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = tickets(200)
    first = kitchen.prepare(write_jsonl(tmp_path / "a.jsonl", rows), max_rows=20)
    second = kitchen.prepare(write_jsonl(tmp_path / "b.jsonl", rows[::-1]), max_rows=20)
    assert first.digest == second.digest
    assert first.rows == {"train": 20, "validation": min(20, first.rows["validation"]), "test": 20}


def test_a_file_that_changed_after_the_lock_is_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", tickets(40))
    spec = lock(DataSource(task="tickets", train=str(path)))
    write_jsonl(path, tickets(41))
    with pytest.raises(DataError, match=r"data\.train: .* has changed"):
        prepare(spec, step=kitchen.step)


def test_an_edited_row_asks_another_question_and_a_touched_file_does_not(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", tickets(40))
    name = fingerprint(prepare.identity, lock(DataSource(task="tickets", train=str(path))))
    os.utime(path, (1, 1))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert fingerprint(prepare.identity, lock(DataSource(task="tickets", train=str(moved)))) == name
    write_jsonl(moved, [*tickets(39), {"text": "edited", "label": "bug"}])
    assert fingerprint(prepare.identity, lock(DataSource(task="tickets", train=str(moved)))) != name


def test_the_question_has_the_name_it_always_had() -> None:
    pin = {"uri": "/anywhere.jsonl", "digest": "ab" * 32}
    name = fingerprint(prepare.identity, DataSpec.model_validate({"task": "tickets", "train": pin}))
    assert name == "7cf4d035a4b7e4db7488f1571f04f2be22b22be8a343933b3cf8f3f20bd30362", (
        "what a stored DataSpec means changed: raise the verb's version"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"split": {"validation": 0.001}}, r"data\.validation: no rows"),
        ({"split": {"validation": 0.4, "test": 0.001}}, r"data\.test: no rows"),
    ],
)
def test_a_side_without_rows_is_refused(
    kitchen: Kitchen, tmp_path: Path, rules: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        kitchen.prepare(write_jsonl(tmp_path / "t.jsonl", tickets(10)), **rules)


def test_a_share_of_nothing_asks_for_no_rows(kitchen: Kitchen, tmp_path: Path) -> None:
    dataset = kitchen.prepare(write_jsonl(tmp_path / "t.jsonl", tickets(30)), split={"test": 0})
    assert dataset.rows["test"] == 0


def test_a_label_that_training_never_sees_is_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", tickets(40))
    test = write_jsonl(tmp_path / "test.jsonl", [*tickets(5, 40), {"text": "new", "label": "refunds"}])
    with pytest.raises(DataError, match=r"test: label 'refunds': 1 rows.*Did you mean refund\?.*on_unseen_label: drop"):
        kitchen.prepare(train, test=str(test))
    dropped = kitchen.prepare(train, test=str(test), on_unseen_label="drop")
    assert dropped.rows["test"] == 5
    assert kitchen.card(dropped)["removed"]["unseen_labels"] == {"test": 1, "validation": 0}


def test_labels_keep_the_order_that_the_plan_gives(kitchen: Kitchen, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", tickets(40))
    assert kitchen.prepare(path, labels=["refund", "bug"]).labels == ("refund", "bug")


def test_labels_given_by_number_take_the_names_of_the_plan(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{**row, "label": int(row["label"] == "bug")} for row in tickets(40)]
    numbered = kitchen.prepare(write_jsonl(tmp_path / "n.jsonl", rows), labels=["refund", "bug"])
    named = kitchen.prepare(write_jsonl(tmp_path / "t.jsonl", tickets(40)), labels=["refund", "bug"])
    assert numbered.digest == named.digest


def test_numbers_sort_as_numbers(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": number % 11} for number in range(220)]
    assert kitchen.prepare(write_jsonl(tmp_path / "n.jsonl", rows)).labels == tuple(map(str, range(11)))


def test_one_label_alone_is_refused(kitchen: Kitchen, tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": "same"} for number in range(30)]
    with pytest.raises(DataError, match="every training row is 'same'; there is nothing to tell apart"):
        kitchen.prepare(write_jsonl(tmp_path / "n.jsonl", rows))


def test_nothing_is_left_half_written_when_rows_are_broken(kitchen: Kitchen, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        kitchen.prepare(write_jsonl(tmp_path / "t.jsonl", [*tickets(40), {"text": "no label"}]))
    assert not [path for path in kitchen.step.root.rglob("*") if path.is_file()]


def test_a_cancelled_run_stops_reading(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", tickets(25_000))
    step = PlainStep(tmp_path / "steps", cancelled=True)
    with pytest.raises(RunCancelled):
        prepare(lock(DataSource(task="tickets", train=str(path))), step=step)


def test_real_sets_are_prepared(kitchen: Kitchen, shared_data: Path) -> None:
    trec = shared_data / "trec"
    dataset = kitchen.prepare(
        trec / "train.jsonl", validation=str(trec / "validation.jsonl"), test=str(trec / "test.jsonl")
    )
    assert dataset.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert dataset.rows["test"] == 500
    assert kitchen.card(dataset)["removed"]["leaked"]["train"] > 0, "TREC's test questions occur in its training rows"


@pytest.mark.long
def test_a_million_rows_fit_in_memory(kitchen: Kitchen, tmp_path: Path) -> None:
    path = tmp_path / "million.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for number in range(1_000_000):
            text = f"ticket {number} about order {number * 7919 % 1_000_003} that came late and was broken again"
            stream.write(json.dumps({"text": text, "label": f"queue {number % 9}"}) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    dataset = kitchen.prepare(path)
    grown_mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{time.monotonic() - started:.1f} s, {grown_mebibytes:.0f} MiB more")
    assert sum(dataset.rows.values()) == 1_000_000
    assert grown_mebibytes < 2048
