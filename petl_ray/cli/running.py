"""`petl-ray run`: a plan, from text to served adapters."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from petl_ray.cli.options import AsJson, ClusterPath, HomePath, PlanPath, Settings, Tasks
from petl_ray.cli.screen import out, print_json, remark
from petl_ray.errors import NotFoundError

if TYPE_CHECKING:  # it knows every room, and torch with them: a second that other commands need not wait
    from pipelines.summary import Summary


def run(
    plan: PlanPath,
    tasks: Tasks = None,
    settings: Settings = None,
    cluster: ClusterPath = "local",
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Name the run, or take up the one of that name.")
    ] = None,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Stay up until Ctrl-C after the run.")] = False,
    home: HomePath = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan. What any run ever computed is found, not computed again; a run that was left behind is resumed."""
    from petl_ray.cli.ending import farewell, stay
    from petl_ray.cli.results import print_results
    from petl_ray.cli.watching import Watch
    from petl_ray.cli.where import placement
    from petl_ray.orchestration import Home
    from petl_ray.plan import read_plan
    from petl_ray.scheduling.launch import launch

    read = read_plan(plan, settings or (), tasks or ())
    where = placement(cluster)
    place = Home.at(home)
    with farewell(where), Watch(silent=as_json) as watch:
        summary = launch(read, place, where, run_id=run_id, on_event=watch)
        samples = _samples(summary) if summary.endpoint else {}
        if as_json:
            print_json({**summary.model_dump(mode="json"), "samples": samples, "steps": watch.counts})
        else:
            print_results(summary, watch.errors)
            _print_samples(summary, samples)
            remark(watch.told())
        if keep_serving and summary.endpoint:
            stay(summary.endpoint)
    if not summary.succeeded:
        raise typer.Exit(summary.exit_code)


def _samples(summary: Summary) -> dict[str, object]:
    """One held-out row of each task that is served, asked over HTTP; what answered is part of the answer."""
    from petl_ray.serving.client import complete, predict

    assert summary.endpoint is not None
    answers: dict[str, object] = {}
    for task in summary.tasks:
        ask = complete if task.task_type == "causal_lm" else predict
        with suppress(NotFoundError):  # refused, and never had a champion: no name stands for it
            answers[task.task] = {"input": task.sample, **ask(summary.endpoint, task.task, [task.sample])[0]}
    return answers


def _print_samples(summary: Summary, samples: dict[str, object]) -> None:
    for task, answer in samples.items():
        assert isinstance(answer, dict)
        said = f"{answer['label']} ({answer['score']:.2f})" if "label" in answer else repr(answer["text"])
        version = answer["provenance"]["version"]
        out.print(f"{task} v{version}: {answer['input']!r} -> {said}", markup=False, soft_wrap=True)
    if samples and summary.endpoint:
        task, answer = next(iter(samples.items()))
        assert isinstance(answer, dict)
        out.print("Try it yourself: `petl-ray serve`, then", markup=False)
        body = shlex.quote(json.dumps({"model": task, "input": answer["input"]}, ensure_ascii=False))
        out.print(
            f"  curl {summary.endpoint}/v1/classify -H 'content-type: application/json' -d {body}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
