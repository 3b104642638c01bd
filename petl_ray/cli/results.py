"""The end of a run: a table of what was chosen for each task, what it is worth and weighs, and what its endpoint answers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from petl_ray.artifact import Interval
from petl_ray.cli.screen import complain, out, print_json, remark, size
from petl_ray.cli.watching import Watch
from petl_ray.errors import NotFoundError, PetlRayError
from petl_ray.tuning.ranking import RankedTrial
from pipelines.summary import SeedScores, Summary, TaskSummary

_ROLES = ("majority", "base", "head_only", "default", "tuned")
_TITLES = {"head_only": "head only", "default": "default\nrecipe", "tuned": "tuned"}
_WIDTH = 124  # where stdout is no terminal
_RANKS = 5  # trials of a search that are printed


def tell(summary: Summary, watch: Watch, as_json: bool, serve: str | None = None) -> None:
    """Say how a run ended that `watch` has watched, and ask what it serves for one answer a task.

    `serve` is the command that brings its server up again; None where it stays up.
    """
    samples = _samples(summary, summary.endpoint) if summary.endpoint else {}
    if as_json:
        print_json({**summary.model_dump(mode="json"), "samples": samples, "steps": watch.counts})
        return
    print_results(summary)
    if summary.endpoint:
        _print_samples(summary.endpoint, samples, serve)
    remark(watch.told())


def print_results(summary: Summary) -> None:
    """Print the table of a summary to stdout, what tuning was worth, and why each candidate was promoted or refused.

    Failures go to stderr, all of them: what a step said when it failed has scrolled away by now.
    """
    console = out if out.is_terminal else Console(highlight=False, width=_WIDTH)
    if summary.tasks:
        console.print(_table(summary))
        console.print("Scores with 95 % bootstrap intervals on held-out rows.", style="dim")
    for task in summary.tasks:
        if task.tuning_gain is not None:
            console.print(f"{task.task}: {_worth(task)}", markup=False, soft_wrap=True)
        if task.ranking:
            console.print(_ranking(task))
    for task in summary.tasks:
        if task.seeds is not None:
            console.print(f"{task.task}: {_seeds(task.seeds, task.metric)}", markup=False, soft_wrap=True)
    for rival, gain in summary.pooled.items():
        told = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        name = _TITLES.get(rival, rival).replace("\n", " ")
        console.print(f"All tasks together: {told} accuracy over {name}.", markup=False)
    for task in summary.tasks:
        for reason in task.reasons:
            console.print(f"{task.task}: {reason}", markup=False, soft_wrap=True)
    for key, error in summary.failures.items():
        complain(f"FAILED {key}: {error}")
    if summary.note:
        console.print(summary.note, markup=False)


def _table(summary: Summary) -> Table:
    roles = [role for role in _ROLES if any(role in task.scores for task in summary.tasks)]
    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False)
    table.add_column("task", no_wrap=True)
    table.add_column("put forward", no_wrap=True)
    for role in roles:
        table.add_column(_TITLES.get(role, role), no_wrap=True)
    for head in ("trained", "bytes", "version", "s"):
        table.add_column(head, no_wrap=True)
    for task in summary.tasks:
        table.add_row(
            f"{task.task}\n{task.metric}\n{task.rows} rows",
            _recipe(task),
            *(_score(task.scores.get(role)) for role in roles),
            f"{task.trained_share:.2%}",
            f"{size(task.adapter_bytes)}\nof {size(task.full_model_bytes)}",
            f"{task.version if task.version is not None else '-'}\n{task.status}",
            f"{task.seconds:.0f}",
        )
    return table


def _worth(task: TaskSummary) -> str:
    """What tuning was worth over the default recipe: where trials were chosen, and on rows that chose nothing."""
    told = f"tuning was worth {task.tuning_gain:+.3f} validation {task.metric} in {task.trials} trials"
    if (held_out := task.differences.get("default")) is not None:
        told += f"; on held-out rows {held_out.value:+.3f} [{held_out.low:+.3f}, {held_out.high:+.3f}]"
    return f"{told}."


def _seeds(seeds: SeedScores, metric: str) -> str:
    each = ", ".join(f"{score:.3f}" for score in seeds.scores.values())
    spread = f" ± {seeds.spread:.3f} (standard deviation)" if seeds.spread is not None else ""
    count = f"{len(seeds.scores)}{f' of {seeds.asked}' if len(seeds.scores) < seeds.asked else ''} seeds"
    forward = f"put forward is number {seeds.chosen}, the median in validation"
    return f"{count} come to {seeds.mean:.3f}{spread} {metric} ({each}); {forward}."


def _score(scored: Interval | None) -> str:
    return "" if scored is None else f"{scored.value:.3f}\n{scored.low:.3f}–{scored.high:.3f}"


def _recipe(task: TaskSummary) -> str:
    recipe = task.recipe
    shape = {"lora": "rank", "bottleneck": "size"}.get(str(recipe["kind"]))
    targets = recipe.get("targets", "")
    told = ", ".join(targets) if isinstance(targets, list | tuple) else str(targets)
    lines = [f"{recipe['kind']} {shape} {recipe[shape]}" if shape else str(recipe["kind"]), told]
    lines += ["rank-stabilised"] if recipe.get("rslora") else []
    lines += [f"layers {', '.join(map(str, recipe['layers']))}"] if recipe.get("layers") else []
    lines += [f"lora+ {recipe['lora_plus']:g}"] if recipe.get("lora_plus") else []
    rates = [recipe["learning_rate"], *(phase.get("learning_rate") for phase in recipe.get("phases", ()))]
    return "\n".join([*(line for line in lines if line), "lr " + " → ".join(f"{rate:.2g}" for rate in rates if rate)])


def _ranking(task: TaskSummary) -> Table:
    """The best trials of a search, and the default recipe wherever it stands; `--json` has them all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("rank", "trial", "state", "trained", "score", "over default", "s"):
        table.add_column(head, no_wrap=True, justify="left" if head == "state" else "right")
    table.add_column("overrides")
    most = len(task.ranking) if len(task.ranking) <= _RANKS + 2 else _RANKS  # a line that says "1 more" is a line too
    for trial in task.ranking:
        if trial.rank <= most or trial.number == 0:
            score = "" if trial.score is None else f"{trial.score:.3f}"
            gain = "" if trial.gain is None else f"{trial.gain:+.3f}"
            facts = (trial.rank, trial.number, trial.state, f"{trial.share:.0%}", score, gain, f"{trial.seconds:.1f}")
            table.add_row(*map(str, facts), _overrides(trial))
    if (left := len(task.ranking) - table.row_count) > 0:
        table.add_row(*[""] * 7, f"and {left} more, all of them with --json")
    return table


def _overrides(trial: RankedTrial) -> Text:
    """What a trial changes in the recipe, and whom it copied."""
    told = [f"{path} {_value(value)}" for path, value in trial.overrides.items() if path != "phases"]
    for phase in trial.overrides.get("phases", ()):
        changed = ", ".join(f"{name} {_value(value)}" for name, value in phase.items() if name != "start")
        told.append(f"from {phase['start']:.0%} {changed}")
    told += [f"copied trial {donor} at {float(share):.0%}" for share, donor in trial.parents.items()]
    return Text("; ".join(told) or "the default recipe")


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def serve_command(url: str, plan: Path | None, settings: Iterable[str] = (), home: Path | None = None) -> str:
    """The command that serves at `url` again what the run of `plan` served there with these settings."""
    address = urlsplit(url)
    words = ["petl-ray", "serve", *([str(plan)] if plan else [])]
    if plan is None or any(setting.startswith("serving") for setting in settings):  # the plan alone says otherwise
        words += ["--host", str(address.hostname), "--port", str(address.port)]
    return shlex.join([*words, *(["--home", str(home)] if home else [])])


def _samples(summary: Summary, url: str) -> dict[str, dict[str, Any]]:
    """One held-out row of each task that is served, asked over HTTP; what answered is part of the answer.

    A server that does not answer is told and changes nothing about the run.
    """
    from petl_ray.serving.client import complete, predict

    answers = {}
    for task in summary.tasks:
        ask = complete if task.task_type == "causal_lm" else predict
        try:
            answer = ask(url, task.task, [task.sample])[0]
            labelled = {"labelled": task.sample_label} if task.sample_label is not None else {}
            answers[task.task] = {"input": task.sample, **labelled, **answer}
        except NotFoundError:
            continue  # refused, and never had a champion: no name stands for it
        except PetlRayError as error:
            remark(f"{task.task}: no sample answer. {error}")
    return answers


def _print_samples(url: str, samples: dict[str, dict[str, Any]], serve: str | None) -> None:
    for task, answer in samples.items():
        said = f"{answer['label']} ({answer['score']:.2f})" if "label" in answer else repr(answer["text"])
        said += f", labelled {answer['labelled']}" if "labelled" in answer else ""
        version = answer["provenance"]["version"]
        out.print(f"{task} v{version}: {answer['input']!r} -> {said}", markup=False, soft_wrap=True)
    for task, answer in list(samples.items())[:1]:
        path, field = ("classify", "input") if "label" in answer else ("completions", "prompt")
        body = shlex.quote(json.dumps({"model": task, field: answer["input"]}, ensure_ascii=False))
        words = f"  curl {url}/v1/{path} -H 'content-type: application/json' -d {body}"
        out.print(f"Try it yourself: `{serve}`, then" if serve else "Try it yourself:", markup=False, soft_wrap=True)
        out.print(words, markup=False, soft_wrap=True)
