"""A plan as a Ray Job on a cluster that runs elsewhere: submitted once, followed to its end, its exit code handed back."""

from __future__ import annotations

import ipaddress
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from petl_ray.errors import ConflictError, PlanError, TemporaryError
from petl_ray.scheduling.luggage import digest_of, pack, travelling

POLL_S = 1.0
PATIENCE_S = 120.0
READY_S = 60.0
# The working directory of a job is a copy that Ray throws away; what a run keeps must not lie in it.
HOME_THERE = ' --home "${PETL_RAY_HOME:-$HOME/.petl-ray}"'
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Submission:
    """A job on a cluster. `attached`: it was there already, and nothing was submitted."""

    id: str
    address: str
    attached: bool
    state: str


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster's job server: `http(s)://host:port` of its dashboard, and the token that opens it."""

    address: str
    token: str | None

    @classmethod
    def at(cls, address: str, token_file: Path | None = None) -> Cluster:
        """The cluster at `address`; the token from `token_file`, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

        Raises PlanError for an address that is no http URL, and for one beyond this machine without a token.
        """
        url = urlparse(address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise PlanError("--address", f"got {address!r}", "jobs are submitted over HTTP", "Write http://host:8265")
        token = _token(token_file)
        if token is None and not _is_loopback(url.hostname):
            raise PlanError(
                "--address", f"got {address} without a token", "whoever reaches that port may run code there",
                "Turn on token authentication on the cluster and pass --token-file",
            )  # fmt: skip
        return cls(address, token)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A job client; RAY_ADDRESS, which would override the address, is set aside meanwhile."""
        from ray.dashboard.modules.job.sdk import JobSubmissionClient
        from ray.exceptions import AuthenticationError

        for chatter in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(chatter).setLevel(logging.WARNING)
        aside = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
        try:
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else None
            yield JobSubmissionClient(self.address, headers=headers)
        except AuthenticationError as error:
            found = "refused this token" if self.token else "asks for a token, and none was found"
            do = "Pass the cluster's token with --token-file"
            raise PlanError(f"cluster {self.address}", found, "whoever may submit may run code there", do) from error
        except (OSError, RuntimeError) as error:  # what requests raises is an OSError, Ray's ConnectionError too
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise TemporaryError(f"cluster {self.address}", "no answer", said, "Is it up?", delay_s=2.0) from error
        finally:
            os.environ.update(aside)


def submit(
    cluster: Cluster,
    plan_path: Path,
    *,
    settings: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    placement: Path | None = None,
    home: str | None = None,
) -> Submission:
    """Submit a plan, or attach to the job that the same plan, data and options have started already.

    The id follows from what travels. A job of that id that failed or was stopped is followed by a new attempt, which
    resumes the run it left behind.
    """
    root = Path.cwd()
    files = travelling(plan_path, root, settings, tasks, placement)
    words = ["petl-ray", "run", str(plan_path.absolute().relative_to(root))]
    words += [word for setting in settings for word in ("--set", setting)]
    words += [word for task in tasks for word in ("--task", task)]
    words += ["--cluster", str(placement.absolute().relative_to(root)) if placement else "auto"]
    words += ["--home", home] if home else []
    entrypoint = shlex.join(words) + ("" if home else HOME_THERE)
    name = f"petl-ray-{digest_of(files, root, [entrypoint])[:20]}"
    with cluster.client() as client:
        states = {job.submission_id: str(job.status.value) for job in client.list_jobs() if job.submission_id}
        for attempt in range(1, 1000):
            job_id = name if attempt == 1 else f"{name}-{attempt}"
            state = states.get(job_id)
            if state in ("FAILED", "STOPPED"):
                continue
            if state is not None:
                return Submission(job_id, cluster.address, attached=True, state=state)
            with tempfile.TemporaryDirectory(prefix="petl-ray-submit-") as folder:
                runtime_env = {"working_dir": str(pack(files, root, Path(folder)))}
                _submit_job(client, entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
            return Submission(job_id, cluster.address, attached=False, state="PENDING")
    raise ConflictError(name, "has failed a thousand times", do="Look at its logs")


def _submit_job(client: Any, **job: Any) -> None:
    """Submit; a cluster that has only just started says for some seconds that nobody is there to take the job."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def follow(cluster: Cluster, job_id: str, write: Callable[[str], None]) -> int:
    """Hand the job's log to `write` as it grows, until the job is over; its exit code (130 if it was stopped).

    A connection that breaks is taken up again where it broke; raises TemporaryError after two minutes without an answer.
    """
    shown = 0
    silent_since: float | None = None
    while True:
        try:
            with cluster.client() as client:
                info = client.get_job_info(job_id)
                text = client.get_job_logs(job_id)
            silent_since = None
        except TemporaryError:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        write(text[shown:])
        shown = max(shown, len(text))
        state = str(info.status.value)
        if state in _OVER:
            code = info.driver_exit_code
            return 130 if state == "STOPPED" else int(code) if code is not None else int(state != "SUCCEEDED")
        time.sleep(POLL_S)


def _token(path: Path | None) -> str | None:
    if path is None and (given := os.environ.get("RAY_AUTH_TOKEN")):
        return given.strip()
    place = path or Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return place.read_text().strip() or None
    except OSError as error:
        if path is not None:
            raise PlanError("--token-file", f"{path} cannot be read", str(error.strerror)) from None
        return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
