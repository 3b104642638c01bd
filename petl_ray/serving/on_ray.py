"""Serving on Ray Serve: one gateway deployment in front, one replica deployment for each base, and the verb `deploy`.

Replicas and gateways follow the names in the journal database by themselves, so a promotion needs no deployment; a new
base, other limits or other sizes do. The application is replaced only when one of these changed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import LoggingConfig

from petl_ray.artifact import Endpoint, Release
from petl_ray.errors import AdapterError, CapacityError, ConflictError, NotFoundError, PetlRayError, TemporaryError
from petl_ray.fingerprint import sha256_of
from petl_ray.serving.api import build_app
from petl_ray.serving.gateway import Gateway
from petl_ray.serving.names import Catalogue, Group, Named
from petl_ray.serving.spec import ServeSpec
from petl_ray.verb import StepContext

APP = "petl-ray"
GATEWAY = "Gateway"
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
_LOOK_S = 0.2
_OBJECT_STORE_BYTES = 128 << 20  # requests and answers travel inside the calls


class BankReplica:
    """A Serve replica around `petl_ray.serving.replica.Replica`; its base is loaded while it is made."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, on the loop that will answer
        self, group: dict[str, Any], spec: dict[str, Any], services: dict[str, str]
    ) -> None:
        import os

        os.environ["HF_HUB_OFFLINE"] = "1"  # a server fetches nothing by itself
        from petl_ray.serving.replica import Replica

        self._replica: Replica | None = None
        self._trouble: str | None = None
        parsed = Group.model_validate(group)
        try:
            self._replica = await Replica.start(parsed, ServeSpec.model_validate(spec), services)
        except TemporaryError:
            raise  # Serve tries again
        except PetlRayError as error:
            self._trouble = str(error)  # trying again is in vain: say so to whoever asks, and leave other bases alone

    async def answer(
        self, model: str, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int | None
    ) -> dict[str, Any]:
        """See `Replica.answer`."""
        if self._replica is None:
            from petl_ray.serving.refusals import refusal

            return refusal(AdapterError(model, "its base cannot be served", self._trouble or ""))
        return await self._replica.answer(model, texts, pairs, max_tokens)

    async def report(self, wanted: Sequence[str]) -> dict[str, Any]:
        """See `Replica.report`; `trouble` says why the base cannot be served."""
        if self._replica is None:
            return {"shelf": {}, "trouble": self._trouble}
        return await self._replica.report(wanted)

    async def __del__(self) -> None:
        if getattr(self, "_replica", None) is not None:
            await self._replica.close()  # type: ignore[union-attr]


class HandleBackend:
    """The replicas of each group behind Serve's handles; a request that lost its replica is asked once more."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = dict(handles)

    @property
    def groups(self) -> frozenset[str]:
        """See `Backend.groups`."""
        return frozenset(self._handles)

    async def ask(
        self, group: str, model: str, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int | None
    ) -> dict[str, Any]:
        """See `Backend.ask`. Answers have no effect on the world, so asking again is harmless."""
        for _ in range(3):
            try:
                return dict(await self._handles[group].answer.remote(model, texts, pairs, max_tokens))
            except (RayActorError, DeploymentUnavailableError):
                await asyncio.sleep(_LOOK_S)
        raise TemporaryError("replica", "lost while it answered", "Serve is replacing it", "Send it again", delay_s=3.0)

    async def survey(self, group: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """See `Backend.survey`."""
        try:
            found = self._handles[group].broadcast("report", list(wanted))
            reports = await found.results_async(timeout_s=10.0, return_exceptions=True)
        except (TimeoutError, RayServeException, DeploymentUnavailableError):
            return []
        return [report for report in reports if isinstance(report, dict)]


@serve.ingress()
class ServeGateway:
    """A Serve replica around `petl_ray.serving.gateway.Gateway` and its FastAPI application."""

    def __init__(self, spec: dict[str, Any], database: str, layout: str, handles: dict[str, Any]) -> None:
        self._layout = layout
        self._gateway = Gateway(ServeSpec.model_validate(spec), Catalogue(database), HandleBackend(handles))
        self._following = asyncio.get_running_loop().create_task(self._gateway.follow())

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self._gateway)

    async def state(self) -> dict[str, Any]:
        """Its health, and which layout it was built for."""
        return {"layout": self._layout, **self._gateway.health()}


def deploy(spec: ServeSpec, *releases: Release, step: StepContext) -> Endpoint:
    """Serve what the names mean on the connected Ray and wait until every gateway and replica follows them.

    Needs `ray.init` before. Raises ConflictError for a port that somebody else holds, CapacityError for more cores than
    the cluster has, AdapterError if the champion of a release's task is refused by its replicas, NotFoundError if no
    name stands yet, TemporaryError if it does not settle in time.
    """
    tasks = {release.task for release in releases}
    return bring_up(spec, step.services, tasks, report=step.report, check=step.check)


def bring_up(
    spec: ServeSpec,
    services: Mapping[str, str],
    tasks: set[str] | None = None,
    report: Callable[..., None] = lambda event, **facts: None,
    check: Callable[[], None] = lambda: None,
) -> Endpoint:
    """`deploy` without a step: `services` names `database`, `store` and `home`; `tasks` are those that must answer."""
    if not ray.is_initialized():
        raise ConflictError("serving", "no Ray is connected", "Serve runs on a cluster", "Call ray.init first")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    names, odd = Catalogue(services["database"]).names()
    if not names:
        reason = "; ".join(odd.values()) or "no adapter has been promoted"
        raise NotFoundError("serving", "no name to serve", reason, "Run a plan first, or `petl-ray adapters promote`")
    groups = {named.group.key: named.group for named in names.values()}
    _check_room(spec, names, groups)
    _start_serve(spec)
    layout = sha256_of({"spec": spec.model_dump(mode="json"), "groups": sorted(groups), "services": dict(services)})
    if not all(state["layout"] == layout for state in _states() or [{"layout": ""}]):
        report("serve.start", bases=len(groups), replicas=spec.replicas, gateways=spec.gateways)
        _run(spec, services, groups, layout)
    adapters = _wait(spec, services["database"], layout, groups, tasks, report, check)
    return Endpoint(url=f"http://{_authority(spec)}", adapters=adapters, about={"layout": layout})


@contextmanager
def local_serving(
    spec: ServeSpec, services: Mapping[str, str], cpus: int | None = None, report: Callable[..., None] | None = None
) -> Iterator[Endpoint]:
    """Serve on this machine until the block ends: starts Ray if none is connected, and stops what it started."""
    _refuse_taken_port(spec)
    own = not ray.is_initialized()
    if own:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    try:
        yield bring_up(spec, services, report=report or (lambda event, **facts: None))
    finally:
        stop()
        if own:
            ray.shutdown()


def stop() -> None:
    """Take the application and Serve itself down; requests in flight finish first. Nothing to do is fine."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if ray.is_initialized():
        # Ray prints that calls to the controller failed, namely those that its end cut short; people read it as an error.
        ray._private.worker._worker_logs_enabled = False
        serve.shutdown()


def _run(spec: ServeSpec, services: Mapping[str, str], groups: Mapping[str, Group], layout: str) -> None:
    plain = spec.model_dump(mode="json")
    # A replacement that starts before the old replica stops needs room for both.
    needed = spec.replicas * spec.cpus_per_replica * len(groups)
    surge = 100 if ray.available_resources().get("CPU", 0.0) >= needed else 0
    replica = serve.deployment(BankReplica).options(
        num_replicas=spec.replicas,
        ray_actor_options={"num_cpus": spec.cpus_per_replica, "num_gpus": spec.gpus_per_replica},
        max_ongoing_requests=spec.max_waiting_rows,
        max_constructor_retry_count=3,
        max_surge_percent=surge,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=min(10.0, spec.request_timeout_s),
        logging_config=_QUIET,
    )
    gateway = serve.deployment(ServeGateway).options(
        name=GATEWAY,
        num_replicas=spec.gateways,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4096,
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=min(10.0, spec.request_timeout_s),
        logging_config=_QUIET,
    )
    handles = {
        key: replica.options(name=f"base-{key}").bind(group.model_dump(mode="json"), plain, dict(services))
        for key, group in groups.items()
    }
    application = gateway.bind(plain, services["database"], layout, handles)
    try:
        serve.run(application, name=APP, route_prefix="/", logging_config=_QUIET)
    except RuntimeError as error:
        raise CapacityError("serving", "Serve could not start the application", str(error)[:500]) from error


def _wait(
    spec: ServeSpec,
    database: str,
    layout: str,
    groups: Mapping[str, Group],
    tasks: set[str] | None,
    report: Callable[..., None],
    check: Callable[[], None],
) -> dict[str, str]:
    """task → digest, once all gateways route what the names mean and all replicas stand. `tasks` None means all."""
    catalogue, until, told = Catalogue(database), time.monotonic() + spec.settle_s, ""
    while True:
        check()
        names, _ = catalogue.names()
        must = {task: named for task, named in names.items() if tasks is None or task in tasks}
        states = _states()
        behind = _behind(spec, states, layout, groups, must)
        if not behind:
            return {task: named.digest for task, named in sorted(must.items())}
        if refused := next(
            (state["behind"][task] for state in states for task in state["refused"] if task in must), None
        ):
            raise AdapterError("serving", "an adapter is refused by its replicas", refused)
        if behind != told:
            report("serve.wait", behind=behind)
            told = behind
        if time.monotonic() > until:
            raise TemporaryError("serving", behind, f"not settled within {spec.settle_s:g} s", "Look at the Serve logs")
        time.sleep(_LOOK_S)


def _behind(
    spec: ServeSpec,
    states: list[dict[str, Any]],
    layout: str,
    groups: Mapping[str, Group],
    must: Mapping[str, Named],
) -> str:
    """What is still to come, in words; empty when all has converged."""
    current = [state for state in states if state["layout"] == layout]
    if len(current) < spec.gateways:
        return f"{len(current)} of {spec.gateways} gateways stand"
    for state in current:
        for key in groups:
            if (standing := state["replicas"].get(key, 0)) < spec.replicas:
                return f"{standing} of {spec.replicas} replicas of base {groups[key].base.pinned.digest[:12]} stand"
        for task, named in must.items():
            if state["adapters"].get(task) != named.digest:
                return f"{task}: {state['behind'].get(task, 'not looked at yet')}"
    return ""


def _states() -> list[dict[str, Any]]:
    """What every gateway says of itself; empty where the application does not run."""
    try:
        found = serve.get_deployment_handle(GATEWAY, app_name=APP).broadcast("state")
        states = found.results(timeout_s=10.0, return_exceptions=True)
    except (TimeoutError, KeyError, RayServeException, DeploymentUnavailableError, RayActorError):
        return []  # KeyError is Serve's word for an application that does not run
    return [state for state in states if isinstance(state, dict)]


def _start_serve(spec: ServeSpec) -> None:
    """Start Serve's proxy on the asked address; a Serve that stands must listen there already."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        _refuse_taken_port(spec)
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": spec.host,
                "port": spec.port,
                "request_timeout_s": spec.request_timeout_s + 5,
                "keep_alive_timeout_s": 30,
            },
            logging_config=_QUIET,
        )
        return
    stands = (client.http_config.host, client.http_config.port)
    if stands != (spec.host, spec.port):
        raise ConflictError(
            "serving.port",
            f"got {_authority(spec)}",
            f"Serve already runs on this cluster and listens on {stands[0]}:{stands[1]}",
            "Ask for that address, or stop the other application first",
        )


def _refuse_taken_port(spec: ServeSpec) -> None:
    """Raise ConflictError, before anything starts, if the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((spec.host, spec.port))
        except OSError as error:
            raise ConflictError(
                "serving.port",
                f"got {_authority(spec)}",
                f"nothing can listen there: {error.strerror}",
                "Stop what holds it, or set serving.port to a free one",
            ) from error


def _check_room(spec: ServeSpec, names: Mapping[str, Named], groups: Mapping[str, Group]) -> None:
    """Raise CapacityError for what could never start: more cores than there are, more names than slots."""
    needed = spec.replicas * spec.cpus_per_replica * len(groups)
    there = int(ray.cluster_resources().get("CPU", 0))
    if needed > there:
        raise CapacityError(
            "serving.replicas",
            f"{needed} cores for {spec.replicas} replicas of {len(groups)} bases",
            f"the cluster has {there}",
            "Ask for fewer replicas or cores",
        )
    for key, group in groups.items():
        count = sum(named.group.key == key for named in names.values())
        if count > spec.max_adapters:
            raise CapacityError(
                "serving.max_adapters",
                f"got {spec.max_adapters}",
                f"{count} names stand for adapters of base {group.base.pinned.digest[:12]}",
                f"Set it to {count} or more",
            )


def _authority(spec: ServeSpec) -> str:
    return f"[{spec.host}]:{spec.port}" if ":" in spec.host else f"{spec.host}:{spec.port}"
