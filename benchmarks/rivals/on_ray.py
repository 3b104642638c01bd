"""The rivals' sweeps under Ray Tune: a process a trial with the Trainer, or actors that are used again with a bare loop."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from benchmarks.questions import Question, prepared, rows
from benchmarks.rivals.loop import Loop
from benchmarks.rivals.trainer import train
from petl_ray.models import use_threads

OBJECT_STORE_BYTES = 256 << 20  # as ours asks for


def start(cores: int) -> None:
    """A local Ray as ours starts one: dashboard and all."""
    ray.init(
        num_cpus=cores,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
    )


def stop() -> None:
    """End it."""
    ray.shutdown()


def sweep_trainer(question: Question, folder: Path) -> list[dict[str, Any]]:
    """A function trial in a process of its own for every configuration; ASHA where the question has rungs."""

    def trial(config: dict[str, Any]) -> None:
        use_threads(1)
        asked = Question.of(config["question"])
        train(asked, asked.configurations[config["number"]], Path(config["folder"]), tune.report)

    return _fit(tune.with_resources(trial, {"cpu": 1}), question, folder, reuse=False, scheduler=_scheduler(question))


def sweep_loop(question: Question, folder: Path) -> list[dict[str, Any]]:
    """A class trial that keeps base and rows, in actors that go on to the next configuration."""
    return _fit(
        tune.with_resources(LoopTrial, {"cpu": question.threads}),
        question,
        folder,
        reuse=True,
        scheduler=FIFOScheduler(),
    )


class LoopTrial(tune.Trainable):  # type: ignore[misc]  # ray has no types
    """One step is one whole trial."""

    def setup(self, config: dict[str, Any]) -> None:
        self._question = Question.of(config["question"])
        use_threads(self._question.threads)
        self._loop = Loop(self._question, Path(config["folder"]))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._number = new_config["number"]
        return True

    def step(self) -> dict[str, Any]:
        facts = self._loop.trial(self._question.configurations[self._number])
        return {"score": facts["score"], "step": int(facts["steps"]), "steps": int(facts["steps"]), "done": True}


def _scheduler(question: Question) -> Any:
    """Tune's own ASHA with the question's first rung and reduction, or none."""
    if len(question.rungs) == 1:
        return FIFOScheduler()
    steps = _horizon(question)
    grace = max(1, round(question.rungs[0] * steps))
    return ASHAScheduler("step", "score", "max", steps, grace, question.reduction)


def _horizon(question: Question) -> int:
    count, size = len(rows(prepared(question.task), "train")), int(question.recipe["batch_size"])
    return int(question.recipe["epochs"]) * -(-count // size)


def _fit(
    trainable: Callable[..., Any] | Any, question: Question, folder: Path, *, reuse: bool, scheduler: Any
) -> list[dict[str, Any]]:
    scratch = tempfile.mkdtemp(prefix="petl-ray-bench-tune-")
    none = tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)
    try:
        tuner = tune.Tuner(
            trainable,
            param_space={
                "number": tune.grid_search(list(range(len(question.configurations)))),
                "question": question.json(),
                "folder": str(folder),
            },
            tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=reuse),
            run_config=tune.RunConfig(name="bench", storage_path=scratch, verbose=0, checkpoint_config=none),
        )
        results = tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if results.errors:
        raise results.errors[0]
    return [
        {
            "number": result.config["number"],
            "score": result.metrics["score"],
            "steps": result.metrics["step"],
            "share": result.metrics["step"] / result.metrics["steps"],
        }
        for result in results
    ]
