"""What a pipeline may rely on when it calls make, pack, each and do, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from petl_ray.errors import DataError, PermanentError, TemporaryError
from petl_ray.orchestration import Home, records, runs
from petl_ray.orchestration.home import opened
from petl_ray.verb import Question
from tests.orchestration.conftest import Starts, starter
from tests.orchestration.verbs import CountSpec, climb, count, greet, lines


@pytest.fixture
def tally(tmp_path: Path) -> str:
    return str(tmp_path / "tally")


def test_a_question_is_answered_once_and_found_by_every_later_run(either_home: Home, tally: str) -> None:
    spec = CountSpec(number=3, tally=tally)
    with starter(either_home)() as run:
        first = run.make(count, spec)
        again = run.make(count, spec)
    with starter(either_home)(locked={"plan": 2}) as other:
        third = other.make(count, spec)
    assert first == again == third
    assert lines(tally) == ["count-3"]
    mine, his = runs.show(either_home, run.id)["steps"], runs.show(either_home, other.id)["steps"]
    assert [(one["state"], one["hit"], one["why"]) for one in mine] == [("SUCCEEDED", False, "first time")]
    assert [(one["state"], one["hit"], one["outcome_digest"]) for one in his] == [("SUCCEEDED", True, first.digest)]


def test_an_outcome_goes_into_the_name_of_what_is_built_on_it(start: Starts, tally: str) -> None:
    with start() as run:
        one = run.make(count, CountSpec(number=1, tally=tally))
        two = run.make(count, CountSpec(number=10, tally=tally), one)
        assert run.make(count, CountSpec(number=10, tally=tally)) != two
    assert two.model_dump()["rows"] == {"train": 11}
    assert lines(tally) == ["count-1", "count-10", "count-10"]


def test_a_pack_is_one_execution_for_the_misses_with_one_outcome_each(either_home: Home, tally: str) -> None:
    questions = [Question(f"q{number}", CountSpec(number=number, tally=tally)) for number in range(4)]
    with starter(either_home)() as run:
        known = run.make(count, questions[2].spec)
        outcomes = run.pack(count, questions)
    assert [outcomes[f"q{number}"].model_dump()["rows"]["train"] for number in range(4)] == [0, 1, 2, 3]
    assert outcomes["q2"] == known
    assert lines(tally).count("pack-of-3") == 3
    assert not outcomes.failures


def test_in_a_pack_a_failure_is_its_questions_own(start: Starts, tally: str) -> None:
    bad = CountSpec(number=1, fail="permanent", tally=tally)
    with start() as run:
        outcomes = run.pack(count, [Question("good", CountSpec(number=0)), Question("bad", bad)])
        assert list(outcomes) == ["good"]
        assert isinstance(outcomes.failures["bad"], DataError)
        assert list(run.failures) == ["count bad"]
    assert runs.show(run.home, run.id)["state"] == "FAILED"


def test_equal_questions_of_a_pack_are_answered_once(start: Starts, tally: str) -> None:
    same = CountSpec(number=5, tally=tally)
    with start() as run:
        outcomes = run.pack(count, [Question("a", same), Question("b", same)])
    assert outcomes["a"] == outcomes["b"]
    assert lines(tally).count("count-5") == 1


def test_a_failing_item_does_not_sink_the_others(start: Starts) -> None:
    items = {"a": CountSpec(number=1), "b": CountSpec(number=2, fail="permanent"), "c": CountSpec(number=3)}
    with start() as run:
        outcomes = run.each(lambda spec: run.make(count, spec), items)
        assert list(outcomes) == ["a", "c"]
        assert "row 17" in str(outcomes.failures["b"])
        assert list(run.failures) == ["count b"]


def test_items_walk_side_by_side(start: Starts) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def meet(item: int) -> int:
        meeting.wait()
        return item * 2

    with start() as run:
        assert dict(run.each(meet, {"a": 1, "b": 2, "c": 3})) == {"a": 2, "b": 4, "c": 6}


def test_a_mistake_in_the_pipeline_itself_is_raised(start: Starts) -> None:
    with pytest.raises(ZeroDivisionError), start() as run:
        run.each(lambda item: 1 // item, {"a": 1, "b": 0})
    assert runs.show(run.home, run.id)["state"] == "FAILED"


def test_the_same_question_asked_side_by_side_is_computed_once(either_home: Home, tally: str) -> None:
    spec = CountSpec(number=9, tally=tally, seconds=0.3)
    with starter(either_home)() as run:
        outcomes = run.each(lambda _: run.make(count, spec), {"a": 0, "b": 1, "c": 2})
    assert len({outcome.digest for outcome in outcomes.values()}) == 1
    assert lines(tally) == ["count-9"]


def test_an_effect_happens_once_in_a_run_and_again_in_the_next(either_home: Home, tally: str) -> None:
    spec = CountSpec(number=1, tally=tally)
    with starter(either_home)() as run:
        first = run.do(greet, spec)
        assert run.do(greet, spec) == first
        assert (first.about["run"], first.about["plan"]) == (run.id, runs.show(either_home, run.id)["plan_digest"])
        assert {"train", "register"} <= {part.split()[0] for part in first.about["verbs"].split(", ")}
    with starter(either_home)(locked={"plan": 2}) as other:
        other.do(greet, spec)
    assert lines(tally) == ["greet-1", "greet-1"]


def test_an_effect_that_ends_with_its_process_is_done_again_when_a_run_is_taken_up(
    either_home: Home, tally: str
) -> None:
    spec, serving = CountSpec(number=1, tally=tally), replace(greet, transient=True)
    with pytest.raises(KeyboardInterrupt), starter(either_home)() as run:
        run.do(serving, spec)
        run.do(serving, spec)
        raise KeyboardInterrupt
    with starter(either_home)() as again:
        assert again.id == run.id
        again.do(serving, spec)
    assert lines(tally) == ["greet-1", "greet-1"]


def test_a_busy_world_is_tried_again(either_home: Home, tally: str) -> None:
    with starter(either_home)() as run:
        run.make(count, CountSpec(number=7, tally=tally, busy_times=2))
    assert len(lines(tally)) == 3
    assert runs.show(either_home, run.id)["steps"][0]["attempts"] == 3


def test_a_world_that_stays_busy_leaves_the_run_resumable(start: Starts, tally: str) -> None:
    with pytest.raises(TemporaryError), start() as run:
        run.make(count, CountSpec(number=7, tally=tally, busy_times=99))
    assert runs.show(run.home, run.id)["state"] == "RESUMABLE"
    assert len(lines(tally)) == 6


def test_wrong_work_is_not_tried_again_and_leaves_its_traceback_in_the_log(start: Starts, tally: str) -> None:
    with pytest.raises(PermanentError, match="KeyError"), start() as run:
        run.make(count, CountSpec(number=1, fail="surprise", tally=tally), label="count odd")
    assert len(lines(tally)) == 1
    assert "raise KeyError" in runs.logs(run.home, run.id)["count odd"]


def test_what_a_verb_notes_to_its_error_is_in_the_log_and_not_in_the_message(start: Starts) -> None:
    wrong = CountSpec(number=1, fail="permanent")
    with start() as run:
        with pytest.raises(DataError, match="a row without a label") as alone:
            run.make(count, wrong, label="alone")
        both = run.pack(
            count, [Question("odd", wrong.model_copy(update={"number": 3})), Question("b", CountSpec(number=2))]
        )
    failure = both.failures["odd"]
    assert "batch 3" not in str(alone.value) + str(failure)
    noted = [label for label, text in runs.logs(run.home, run.id).items() if "as it was read in batch 3" in text]
    assert sorted(noted) == ["alone", "count odd"]


def test_an_outcome_that_names_a_file_nobody_kept_is_never_recorded(start: Starts, home: Home) -> None:
    with pytest.raises(PermanentError, match="not in the store"), start() as run:
        run.make(count, CountSpec(number=1, fail="unkept"))
    name = runs.show(home, run.id)["steps"][0]["name"]
    assert opened(home).store.read(records.record_key(name)) is None


def test_rounds_are_recorded_and_checkpoints_are_gone_when_the_step_is_done(either_home: Home, tally: str) -> None:
    with starter(either_home)() as run:
        outcome = run.make(climb, CountSpec(number=0, rounds=4, tally=tally))
    assert outcome.model_dump()["rows"]["top"] == 10
    name = runs.show(either_home, run.id)["steps"][0]["name"]
    assert opened(either_home).store.list(f"steps/{name}/progress/") == []
    assert list((either_home.path / "work").iterdir()) == []


def test_a_record_whose_files_are_gone_does_not_count(start: Starts, home: Home, tally: str) -> None:
    spec = CountSpec(number=4, tally=tally)
    with start() as run:
        first = run.make(count, spec)
    store = opened(home).store
    sha256 = first.files[0].sha256
    store.delete(f"objects/{sha256[:2]}/{sha256}")
    with start(locked={"plan": 2}) as again:
        assert again.make(count, spec).digest == first.digest
    assert store.has(sha256, first.files[0].size_bytes)
    assert len(lines(tally)) == 2
    assert runs.show(home, again.id)["steps"][0]["why"] == "its outcome is gone from the store"


def test_a_miss_says_what_changed(start: Starts, home: Home) -> None:
    with start() as run:
        base = run.make(count, CountSpec(number=1), label="base")
        run.make(count, CountSpec(number=2), base, label="top")
    with start(locked={"plan": 2}) as run:
        base = run.make(count, CountSpec(number=5), label="base")
        run.make(count, CountSpec(number=2), base, label="top")
    whys = [one["why"] for one in runs.show(home, run.id)["steps"]]
    assert whys == ["spec.number 1 -> 5", "dataset changed"]


def test_a_run_lives_as_well_in_a_bucket(
    home: Home, tally: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in {**given, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    try:
        import boto3

        boto3.client("s3", endpoint_url=given["AWS_ENDPOINT_URL_S3"], region_name="us-east-1").create_bucket(
            Bucket="runs"
        )
        bucket = Home(home.path, "s3://runs/petl", home.database_url, home.tracking_url)
        with starter(bucket)() as run:
            base = run.make(count, CountSpec(number=1, tally=tally))
            top = run.make(climb, CountSpec(number=2, rounds=3, tally=tally), base)
        with starter(bucket)(locked={"plan": 2}) as again:
            assert again.make(climb, CountSpec(number=2, rounds=3, tally=tally), base) == top
        assert lines(tally) == ["count-1", "round-0", "round-1", "round-2"]
        kept = opened(bucket).store.list("steps/")
        assert [key.rpartition("/")[2] for key in kept] == ["record.json", "record.json"]
    finally:
        server.stop()
