"""How a run's end is told: what its server answers, and how to ask it again."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from petl_ray.artifact import Interval
from petl_ray.cli.results import _print_samples, _recipe, print_results, serve_command, tell
from petl_ray.cli.serving import answered_by
from petl_ray.cli.watching import Watch
from petl_ray.tuning.ranking import RankedTrial
from pipelines.summary import Summary, TaskSummary

URL = "http://127.0.0.1:8123"


def summary(endpoint: str) -> Summary:
    """The end of a run of one task that is served at `endpoint`."""
    score = Interval(value=0.9, low=0.8, high=1.0)
    task = TaskSummary(
        task="mood",
        task_type="classification",
        sample="good day",
        recipe={"kind": "lora", "rank": 2, "targets": "attention", "learning_rate": 0.01},
        metric="accuracy",
        mode="max",
        rows=10,
        scores={"default": score},
        differences={},
        trials=None,
        tuning_gain=None,
        trained_share=0.01,
        adapter_bytes=1000,
        full_model_bytes=100_000,
        adapter_digest="0" * 64,
        seconds=1.0,
        version=1,
        status="champion",
        reasons=(),
    )
    return Summary(plan="tiny", tasks=(task,), failures={}, endpoint=endpoint)


def test_a_server_that_does_not_answer_is_a_remark_beside_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    tell(summary(nobody), Watch(silent=True), as_json=False)
    told = capsys.readouterr()
    assert "mood: no sample answer" in told.err and "no answer" in told.err
    assert "0.900" in told.out
    tell(summary(nobody), Watch(silent=True), as_json=True)
    assert json.loads(capsys.readouterr().out)["samples"] == {}


def test_an_answer_names_the_version_and_the_digest_that_gave_it() -> None:
    provenance = {"task": "mood", "version": 3, "adapter": "0123456789abcdef" * 4}
    assert answered_by({"label": "glad", "score": 0.9, "provenance": provenance}) == "mood v3 0123456789ab"


def test_every_task_that_failed_is_named_at_the_end_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    ended = summary("").model_copy(update={"failures": {"mail": "rows: none; they are gone", "chat": "labels: one"}})
    tell(ended, Watch(silent=True), as_json=False)
    told = capsys.readouterr().err
    assert "FAILED mail: rows: none; they are gone" in told and "FAILED chat: labels: one" in told


@pytest.mark.parametrize("failed", [0, 1])
def test_a_run_in_which_something_failed_does_not_say_that_every_outcome_was_known(failed: int) -> None:
    watch = Watch(silent=True)
    watch.counts |= {"hit": 3, "failed": failed}
    assert ("every outcome was known" in watch.told()) is (not failed)


def test_what_tuning_was_worth_is_told_of_rows_that_chose_nothing_too(capsys: pytest.CaptureFixture[str]) -> None:
    worse = {"default": Interval(value=-0.01, low=-0.05, high=0.03)}
    task = summary("").tasks[0].model_copy(update={"trials": 8, "tuning_gain": 0.25, "differences": worse})
    print_results(Summary(plan="tiny", tasks=(task,), failures={}))
    told = "mood: tuning was worth +0.250 validation accuracy in 8 trials; on held-out rows -0.010 [-0.050, +0.030]."
    assert told in capsys.readouterr().out


def test_what_was_put_forward_names_all_that_tells_it_from_others() -> None:
    recipe = {"kind": "lora", "rank": 4, "targets": "attention", "rslora": True, "layers": [4, 5], "lora_plus": 4.0}
    task = summary("").tasks[0].model_copy(update={"recipe": {**recipe, "learning_rate": 0.01}})
    told = ["lora rank 4", "attention", "rank-stabilised", "layers 4, 5", "lora+ 4", "lr 0.01"]
    assert _recipe(task).splitlines() == told


@pytest.mark.parametrize(
    ("plan", "settings", "home", "words"),
    [
        (Path("a plan.yaml"), (), None, "petl-ray serve 'a plan.yaml'"),
        (Path("plan.yaml"), ("name=x",), Path("there"), "petl-ray serve plan.yaml --home there"),
        (Path("plan.yaml"), ("serving.port=8123",), None, "petl-ray serve plan.yaml --host 127.0.0.1 --port 8123"),
        (None, (), Path("there"), "petl-ray serve --host 127.0.0.1 --port 8123 --home there"),
    ],
)
def test_the_command_that_serves_again_listens_where_the_run_did(
    plan: Path | None, settings: tuple[str, ...], home: Path | None, words: str
) -> None:
    assert serve_command(URL, plan, settings, home) == words


@pytest.mark.parametrize(
    ("answer", "path", "body"),
    [
        ({"label": "glad", "score": 0.9}, "classify", {"model": "mood", "input": "it's good"}),
        ({"text": "2024-01-02"}, "completions", {"model": "mood", "prompt": "it's good"}),
    ],
)
def test_what_to_try_is_what_the_task_answers(
    answer: dict[str, object], path: str, body: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = {"labelled": "sorry"} if "label" in answer else {}
    samples = {"mood": {"input": "it's good", **labelled, **answer, "provenance": {"version": 3}}}
    _print_samples(URL, samples, "petl-ray serve plan.yaml")
    told, invitation, curl = capsys.readouterr().out.splitlines()
    assert told.endswith("-> glad (0.90), labelled sorry" if labelled else "-> '2024-01-02'")
    assert invitation == "Try it yourself: `petl-ray serve plan.yaml`, then"
    words = shlex.split(curl)
    assert words[:2] == ["curl", f"{URL}/v1/{path}"]
    assert json.loads(words[-1]) == body
    _print_samples(URL, samples, None)
    assert "Try it yourself:\n" in capsys.readouterr().out


def test_the_trials_of_a_search_are_ranked_beside_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    def trial(rank: int, number: int, **more: Any) -> RankedTrial:
        facts = {
            "state": "stopped",
            "rungs": 1,
            "share": 0.25,
            "score": 0.5,
            "gain": -0.125,
            "seconds": 0.5,
            "overrides": {},
        }
        return RankedTrial.model_validate({"rank": rank, "number": number, **facts, **more})

    phased = {"learning_rate": 0.01, "phases": [{"start": 0.5, "learning_rate": 0.008}]}
    best = trial(1, 3, state="finished", share=1.0, score=0.875, gain=0.25, overrides=phased, parents={"0.5": 2})
    others = [trial(rank, rank + 2, overrides={"method.rank": rank}) for rank in range(2, 8)]
    ranking = (best, *others, trial(8, 0))
    task = summary("").tasks[0].model_copy(update={"trials": 8, "tuning_gain": 0.25, "ranking": ranking})
    print_results(Summary(plan="tiny", tasks=(task,), failures={}))
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "1 3 finished 100% 0.875 +0.250 0.5 learning_rate 0.01; from 50% learning_rate 0.008; copied trial 2 at 50%"
        in told
    )
    assert "5 7 stopped 25% 0.500 -0.125" in told and "method.rank 6" not in told
    assert "8 0 stopped 25% 0.500 -0.125 0.5 the default recipe" in told and "and 2 more" in told
