"""Training spread over the workers of a Ray cluster: the same loop, each worker computing its share of every batch.

Gradients are added up after every step, so N workers take the steps one worker would take, up to rounding. The workers
know nothing of steps and stores: a mailbox actor hands them rows and the newest checkpoint, and carries progress,
checkpoints and at last the adapter back to the process that holds the step. That process reserves nothing and loads
nothing: the worker of rank 0 finishes as `train.py` does, on the cores it trained with.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from petl_ray.artifact import Adapter, Dataset, FileEntry
from petl_ray.errors import (
    CapacityError,
    CorruptionError,
    PetlRayError,
    RunCancelled,
    TemporaryError,
    TrainingError,
)
from petl_ray.fingerprint import sha256_file
from petl_ray.training.failures import as_failure
from petl_ray.training.session import open_session
from petl_ray.training.spec import TrainSpec
from petl_ray.training.train import Watcher, finish, run_course
from petl_ray.verb import Resources, StepContext, usable_cpus

PUMP_EVERY_S = 0.5
RESTARTS = 3  # of the group of workers, after one of them or its node was lost


def train(spec: TrainSpec, dataset: Dataset, *, step: StepContext) -> Adapter:
    """As `train.train`, on `step.resources.workers` workers of `cpus` cores (and `gpus` GPUs) each.

    Starts a local Ray where none is connected. Raises CapacityError if the cluster can never hold the workers and
    TemporaryError if workers were lost more often than RESTARTS; what `train.train` raises it raises too.
    """
    resources = step.resources
    _connect(resources)
    progress = step.load_progress()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = (
        ray.remote(Mailbox)
        .options(
            num_cpus=0, max_concurrency=4, scheduling_strategy=here
        )  # lost with this process's machine or not at all
        .remote(_contents(step.fetch(dataset)), _contents(progress.directory) if progress else None)
    )
    pump = _Pump(mailbox, step)
    pump.start()
    lost: TemporaryError | None = None
    try:
        _fit(spec, dataset, step.name, resources, mailbox)
    except TemporaryError as error:
        lost = error  # unless a worker said why
    finally:
        pump.finish()
        failure, answer = _left_in(mailbox)
        ray.kill(mailbox)
    if pump.error:
        raise pump.error
    if answer is None and (why := failure or lost) is not None:
        raise why
    if answer is None:
        raise TemporaryError("training.on_ray", "the workers ended without an adapter", "they were stopped or lost")
    return _kept(answer[0], answer[1], step)


def _left_in(mailbox: Any) -> tuple[PetlRayError | None, tuple[Adapter, dict[str, bytes]] | None]:
    """Why the workers ended, and what they came to; a mailbox that is gone is a reason too."""
    try:
        failure, answer = ray.get([mailbox.failure.remote(), mailbox.answer.remote()])
    except ray.exceptions.RayError as error:
        return TemporaryError("training.on_ray", "the mailbox of the workers is gone", str(error)[:200]), None
    return failure, answer


def _kept(adapter: Adapter, files: Mapping[str, bytes], step: StepContext) -> Adapter:
    """The workers' adapter, its files kept by the step."""
    _unpack(files, step.out)
    kept = {one.path: one for one in step.keep(*files)}
    for one in (*adapter.files, *adapter.traces):
        if kept[one.path] != one:
            raise CorruptionError(f"training.on_ray: {one.path}", "its bytes changed between worker and step")
    return adapter


class Mailbox:
    """The actor between the process that holds the step and the workers."""

    def __init__(self, data: dict[str, bytes], checkpoint: dict[str, bytes] | None) -> None:
        self._data, self._checkpoint = data, checkpoint
        self._letters: list[tuple[str, dict[str, Any]]] = []
        self._unsaved: dict[str, Any] | None = None
        self._failure: PetlRayError | None = None
        self._answer: tuple[Adapter, dict[str, bytes]] | None = None
        self._stopped = False

    def begin(self) -> tuple[dict[str, bytes], dict[str, bytes] | None, bool]:
        """For a worker: the dataset's files, the newest checkpoint's files, and whether to stop at once."""
        return self._data, self._checkpoint, self._stopped

    def report(self, event: str, facts: dict[str, Any]) -> bool:
        """From rank 0: progress. Returns whether the work should stop."""
        self._letters.append((event, facts))
        return self._stopped

    def stopped(self) -> bool:
        """Whether the work should stop."""
        return self._stopped

    def save(self, files: dict[str, bytes], note: dict[str, Any]) -> None:
        """From rank 0: a new checkpoint. A restarted group of workers continues from it at once."""
        self._checkpoint = files
        self._unsaved = note

    def fail(self, error: PetlRayError) -> None:
        """From a worker: the work is wrong, and starting again would not help. Whoever is started again ends at once."""
        self._failure = error
        self._stopped = True

    def failure(self) -> PetlRayError | None:
        """What a worker said was wrong, if anything."""
        return self._failure

    def deliver(self, adapter: Adapter, files: dict[str, bytes]) -> None:
        """From rank 0: the work is done."""
        self._answer = (adapter, files)

    def answer(self) -> tuple[Adapter, dict[str, bytes]] | None:
        """The adapter with the bytes of its files, once it is there."""
        return self._answer

    def stop(self) -> None:
        """From the step: end the work."""
        self._stopped = True

    def drain(self) -> tuple[list[tuple[str, dict[str, Any]]], tuple[dict[str, bytes], dict[str, Any]] | None]:
        """For the step: letters since the last time, and a checkpoint that is not yet durable."""
        letters, self._letters = self._letters, []
        note, self._unsaved = self._unsaved, None
        return letters, (self._checkpoint, note) if note is not None and self._checkpoint is not None else None


class _Pump(threading.Thread):
    """Carries letters and checkpoints from the mailbox to the step, and the step's wish to stop to the mailbox."""

    def __init__(self, mailbox: Any, step: StepContext) -> None:
        super().__init__(name="training-mail", daemon=True)
        self._mailbox, self._step = mailbox, step
        self._done = threading.Event()
        self.error: PetlRayError | None = None

    def run(self) -> None:
        while not self._done.wait(PUMP_EVERY_S):
            self._turn()
        self._turn()

    def finish(self) -> None:
        """Carry what is left and end."""
        self._done.set()
        self.join()

    def _turn(self) -> None:
        if self.error is not None:
            return
        try:
            letters, checkpoint = ray.get(self._mailbox.drain.remote())
            for event, facts in letters:
                self._step.report(event, **facts)
            if checkpoint is not None:
                with tempfile.TemporaryDirectory() as directory:
                    _unpack(checkpoint[0], Path(directory))
                    self._step.save_progress(Path(directory), checkpoint[1])
            self._step.check()
        except PetlRayError as error:
            self.error = error
            self._mailbox.stop.remote()
        except ray.exceptions.RayError as error:
            self.error = TemporaryError("training.on_ray", "the mailbox of the workers is gone", str(error)[:200])


class _TorchPeers:
    """The workers of this group. Whether to stop travels with every sum, so that all of them stop at the same step."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.count = int(context.get_world_rank()), int(context.get_world_size())
        self.stop_wanted = False

    def add_up(self, tensor: torch.Tensor) -> None:
        wish = torch.full((1,), float(self.stop_wanted), dtype=tensor.dtype, device=tensor.device)
        whole = torch.cat([wish, tensor])
        torch.distributed.all_reduce(whole)
        if whole[0] > 0:
            raise RunCancelled("training", "somebody asked the workers to stop")
        tensor.copy_(whole[1:])


class _MailStep:
    """What the course's Watcher sees of the step in a worker; only rank 0 writes letters."""

    def __init__(self, mailbox: Any, peers: _TorchPeers) -> None:
        self._mailbox, self._peers = mailbox, peers
        self._speaks = peers.rank == 0

    def check(self) -> None:
        if self._speaks:
            self._peers.stop_wanted = ray.get(self._mailbox.stopped.remote())

    def report(self, event: str, /, **facts: Any) -> None:
        if self._speaks:
            self._mailbox.report.remote(event, facts)

    def save_progress(self, directory: Path, note: Mapping[str, Any]) -> None:
        if self._speaks:
            ray.get(self._mailbox.save.remote(_contents(directory), dict(note)))


class _Out:
    """What finishing sees of the step in a worker: a directory of its own, and the entries that the step would give."""

    def __init__(self, directory: Path) -> None:
        self.out = directory

    def keep(self, *paths: str) -> tuple[FileEntry, ...]:
        files = {path: self.out / path for path in paths}
        return tuple(
            FileEntry(path=path, sha256=sha256_file(file), size_bytes=file.stat().st_size)
            for path, file in files.items()
        )


def _work(config: dict[str, Any]) -> None:
    """One worker: the whole course over its share of every batch; rank 0 then makes the adapter."""
    spec, dataset = TrainSpec.model_validate(config["spec"]), Dataset.model_validate(config["dataset"])
    key, mailbox = dataset.task, config["mailbox"]
    data, checkpoint, stopped = ray.get(mailbox.begin.remote())
    if stopped:
        return
    peers = _TorchPeers()
    try:
        with tempfile.TemporaryDirectory() as directory:
            rows, past = _unpack(data, Path(directory) / "rows"), None
            if checkpoint is not None:
                past = _unpack(checkpoint, Path(directory) / "checkpoint")
            session = open_session(spec, slots=1, threads=config["cpus"])
            try:
                session.admit(key, spec, rows, past, peers)
            except CorruptionError:
                session.admit(key, spec, rows, None, peers)
            run_course(session, key, Watcher(session, key, key, _MailStep(mailbox, peers)))
            if peers.rank == 0:
                out = Path(directory) / "out"
                out.mkdir()
                adapter = finish(session, session.occupant(key), dataset, _Out(out))
                ray.get(mailbox.deliver.remote(adapter, _contents(out)))
    except RunCancelled:
        return
    except Exception as error:  # whatever it is, the step is told of it
        told = as_failure(key, error)
        if isinstance(error, PetlRayError) or isinstance(told, CapacityError):
            ray.get(mailbox.fail.remote(told))
        # A training that diverges diverges in the same sums for every worker, and all end here. Whatever else it is, it may
        # be this one's alone, and its peers would wait for what it owes their step: raising ends the group.
        if not isinstance(error, TrainingError):
            raise


def _fit(spec: TrainSpec, dataset: Dataset, name: str, resources: Resources, mailbox: Any) -> None:
    share: dict[str, float] = {"CPU": resources.cpus}
    if resources.gpus:
        share["GPU"] = resources.gpus
    with tempfile.TemporaryDirectory(prefix="petl-ray-train-") as storage:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "spec": spec.model_dump(mode="json"),
                "dataset": dataset.model_dump(mode="json"),
                "mailbox": mailbox,
                "cpus": resources.cpus,
            },
            torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.workers, use_gpu=bool(resources.gpus), resources_per_worker=share
            ),
            run_config=RunConfig(
                name=f"train-{name}",  # never a name that another question could have used
                storage_path=storage,
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            why = str(error).strip().splitlines()[-1][:300]
            raise TemporaryError("training.on_ray", f"workers were lost more than {RESTARTS} times", why) from error


def _connect(resources: Resources) -> None:
    if not ray.is_initialized():
        cores = max(usable_cpus(), resources.workers * resources.cpus)
        ray.init(num_cpus=cores, include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False)
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    fit = resources.fit(machines)
    if resources.workers > fit:
        raise CapacityError(
            f"training: {resources.workers} workers",
            f"they need {resources.cpus} CPU and {resources.gpus:g} GPU each",
            f"the {len(machines)} machines of the cluster hold {fit} of them",
            "Ask for fewer or smaller workers, or a larger cluster",
        )


def _contents(directory: Path) -> dict[str, bytes]:
    """Every file of a flat directory by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def _unpack(files: Mapping[str, bytes], directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory
