"""Jobs as Ray tasks: the worker claims, answers and commits; the driver waits. Ray is started at the first miss.

A lost worker or node is no state of a run: Ray starts the job again, which finds the claim of a dead owner and goes on
from the newest checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from petl_ray.errors import CapacityError, PermanentError, PetlRayError, RunCancelled, TemporaryError
from petl_ray.orchestration import journal
from petl_ray.orchestration.failures import as_ours
from petl_ray.orchestration.home import opened
from petl_ray.orchestration.placement import Placement, check_capacity
from petl_ray.orchestration.pulse import Pulse
from petl_ray.orchestration.work import Job, Reply, work
from petl_ray.verb import Resources, Verb, load

_LOST_WORKERS = 3
_LOOK_S = 0.25
_KNOCK_S = 10.0
_ANSWER_S = 180.0  # a machine that was just added loads Python and torch for the first time
_OBJECT_STORE_BYTES = 256 << 20  # only questions and answers travel through it; files go through the store

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "petl-ray"}

_starting = threading.Lock()


def ensure_ray(placement: Placement) -> None:
    """Connect this process to the placement's Ray, starting a local one where it says so; once, from any thread.

    The dashboard stays on (bound to loopback): Train asks it who is alive, and without it leaks the cores of a stopped
    trial. Raises TemporaryError if the cluster does not answer.
    """
    with _starting:
        if _joined(placement):
            return
        gpus = None if placement.gpus == "auto" else placement.gpus
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _start_and_stay(
            address="local",
            num_cpus=placement.cores,
            num_gpus=gpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            **_QUIET,
        )


def _joined(placement: Placement) -> bool:
    """Connect to the cluster that the placement names; False where it names none, or says `auto` and none is there."""
    if ray.is_initialized():
        return True
    if placement.ray == "local":
        return False
    try:
        _knock(placement.ray)
        ray.init(address=placement.ray, **_QUIET)
        return True
    except (OSError, RayError) as error:
        if placement.ray == "auto" and isinstance(error, ConnectionError):
            return False
        reason = str(error).splitlines()[0]
        raise TemporaryError(f"Ray at {placement.ray}", reason, "no cluster answers there", delay_s=2.0) from error


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at `host:port`: Ray itself tries for many minutes, and tells the terminal so."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _start_and_stay(**options: Any) -> None:
    """`ray.init` in a thread that never ends: Linux kills what Ray starts with the *thread* that started it, and a
    pipeline's items run in threads that come and go."""
    failure: list[BaseException] = []
    started = threading.Event()

    def stay() -> None:
        try:
            ray.init(**options)
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that called
            failure.append(error)
        started.set()
        threading.Event().wait()

    threading.Thread(target=stay, name="keeps-ray", daemon=True).start()
    started.wait()
    if failure:
        raise failure[0]


def ask_machines(placement: Placement, verb: str, question: str) -> list[Any] | None:
    """What `question` answers on each machine of the cluster that could hold a worker of `verb`; None without a cluster.

    See `petl_ray.orchestration.asking.ask`. It reserves nothing, so it neither waits for a busy machine nor keeps
    others waiting.
    """
    with _starting:
        if not _joined(placement):
            return None
    machines = _machines()
    asked = placement.resources(verb, list(machines.values()))
    fit = [node for node, machine in machines.items() if asked.fit([machine])]
    if not fit:
        raise CapacityError(
            f"placement.verbs.{verb}",
            f"asks for {asked.cpus} cpus and {asked.gpus:g} gpus on one machine",
            f"none of the cluster's {len(machines)} has them",
            "Lower them, or choose a bigger placement",
        )
    # Unreserved GPUs are seen all the same, unless a cluster goes back to hiding them.
    seeing = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}} if asked.gpus else None
    task = ray.remote(num_cpus=0, max_calls=1, runtime_env=seeing)(_answer_in_worker)
    refs = [
        task.options(name=question, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            question
        )
        for node in fit
    ]
    late = ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_S)[1]
    for ref in late:
        ray.cancel(ref)
    if late:
        found = f"{len(late)} of {len(refs)} machines did not answer within {_ANSWER_S:g} s"
        raise TemporaryError(f"{question} on the cluster", found, do="Try again, or see what they are busy with")
    return [_answered(ref, question) for ref in refs]


def machines_there(placement: Placement) -> list[Mapping[str, float]] | None:
    """What each machine of the placement's cluster has in all, as Ray names it; None without a cluster."""
    with _starting:
        return list(_machines().values()) if _joined(placement) else None


def _machines() -> dict[str, Mapping[str, float]]:
    """What every machine of the cluster has in all, busy or not, by Ray's node id."""
    return {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}


def _answer_in_worker(question: str) -> Any:
    return load(question)()


def _answered(ref: Any, question: str) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, PetlRayError):
            raise cause from None
        found = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
        raise PermanentError(
            f"{question} on the cluster", found, "a machine cannot say", "Install the same petl-ray on all of them"
        ) from error


class OnRay:
    """The executor that hands jobs to Ray workers; see `petl_ray.orchestration.executor.Executor`."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def admit(self, verb: Verb) -> Resources:
        ensure_ray(self._placement)
        machines = list(_machines().values())
        asked = self._placement.resources(verb.name, machines)
        check_capacity(verb.name, asked, verb.drives_ray, machines)
        return asked

    def prepare(self, verb: Verb) -> Resources:
        return self.admit(verb) if verb.drives_ray else self._placement.resources(verb.name)

    def answer(self, jobs: Sequence[Job], pulse: Pulse, check: Callable[[], None]) -> list[Reply]:
        for job in jobs:
            _note_pending(job)
        refs = {_submit(job): job for job in jobs}
        replies: list[Reply] = []
        waiting = list(refs)
        try:
            while waiting:
                check()
                ready, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK_S)
                for ref in ready:
                    replies += _replies(ref, refs[ref])
        except BaseException:
            for ref in waiting:
                with suppress(RayError, ValueError):  # best effort: a worker whose driver is gone ends anyway
                    ray.cancel(ref)
            raise
        return replies


def _submit(job: Job) -> Any:
    """Leaves reserve what they use; what only drives other Ray work reserves nothing, so that it cannot block it."""
    given = job.resources
    leaf = not job.verb.drives_ray and given.workers == 1
    task = ray.remote(
        num_cpus=given.cpus if leaf else 0,
        num_gpus=given.gpus if leaf else 0,
        max_calls=1 if leaf and given.gpus else 0,  # a device's memory, and its faults, end with the process
        max_retries=_LOST_WORKERS,
        retry_exceptions=False,
    )(_work_in_worker)
    return task.options(name=f"{job.verb.name} {job.asked[0].entry.label}").remote(job)


def _work_in_worker(job: Job) -> list[Reply]:
    """Runs in a Ray worker: everything that libraries say goes to the step's log, every error comes back as a Reply."""
    try:
        place = opened(job.home)
        with _logged(job), Pulse(place.database, job.run_id, beat_s=job.lasts_s / 5, lasts_s=job.lasts_s) as pulse:
            return work(job, pulse)
    except Exception as error:  # noqa: BLE001 - nothing of Ray's wrapping may reach the user
        ours = as_ours(error, job.asked[0].entry.label)
        return [Reply(one.entry.name, error=ours) for one in job.asked]


def _replies(ref: Any, job: Job) -> list[Reply]:
    """The job's replies, or what became of its worker in our words."""
    error: PetlRayError
    label = job.asked[0].entry.label
    try:
        answered: list[Reply] = ray.get(ref)
        return answered
    except TaskCancelledError:
        error = RunCancelled(f"run {job.run_id}", "its task was cancelled")
    except OutOfMemoryError as lost:
        error = CapacityError(label, str(lost).splitlines()[0], "the machine ran out of memory", "Give it fewer slots")
    except RayTaskError as raised:
        error = as_ours(raised.cause, label)
    except RayError as lost:
        found = f"{type(lost).__name__}: {str(lost).splitlines()[0]}"
        why = f"its worker was lost {_LOST_WORKERS + 1} times"
        error = PermanentError(label, found, why, "See `petl-ray runs logs`")
    return [Reply(one.entry.name, error=error) for one in job.asked]


def _note_pending(job: Job) -> None:
    place = opened(job.home)
    with place.database.begin(durable=False) as conn:
        for one in job.asked:
            journal.pending(conn, one.entry)


@contextmanager
def _logged(job: Job) -> Iterator[None]:
    """Everything this worker prints, libraries in C included, goes to the log of the job's steps for the block."""
    paths = [job.home.log_of(job.run_id, one.entry.name) for one in job.asked]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with paths[0].open("ab") as log:
        for other in paths[1:]:
            with suppress(OSError):  # one execution, one log: the other steps' names lead to it
                other.symlink_to(paths[0].name)
        saved = [os.dup(number) for number in (1, 2)]
        try:
            _point_outputs(log.fileno(), log.fileno())
            yield
        finally:
            _point_outputs(*saved)
            for number in saved:
                os.close(number)
    if not job.home.is_local:
        _keep_log(job, paths[0])


def _point_outputs(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def _keep_log(job: Job, path: Path) -> None:
    """On a cluster the log is on another machine: the store keeps a copy where `runs logs` finds it."""
    with suppress(PetlRayError, OSError):
        for one in job.asked:
            opened(job.home).store.write(f"logs/{job.run_id}/{one.entry.name}.log", path.read_bytes())
