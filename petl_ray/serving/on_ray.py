"""Serving on Ray Serve: an application for the gateways, one application for each base, and the verb `deploy`.

Replicas and gateways follow the names in the journal database by themselves, so a promotion needs no deployment; a new
base, other limits or other sizes do. Only the applications that differ are replaced: a base that comes or goes leaves
the replicas of the others running.
"""

from __future__ import annotations

import asyncio
import logging
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
from petl_ray.errors import AdapterError, CapacityError, ConflictError, NotFoundError, TemporaryError
from petl_ray.fingerprint import sha256_of
from petl_ray.serving.address import authority, refuse_taken_port
from petl_ray.serving.api import build_app
from petl_ray.serving.gateway import Gateway
from petl_ray.serving.hosted import BankReplica
from petl_ray.serving.machines import check_machines
from petl_ray.serving.names import Catalogue, Group, Named
from petl_ray.serving.spec import ServeSpec
from petl_ray.verb import StepContext

GATEWAYS, GATEWAY = "petl-ray", "Gateway"  # application and deployment
BASES, REPLICA = "petl-ray-base-", "BankReplica"  # application, followed by the group's key, and deployment
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
_LOOK_S = 0.2
_PATIENCE_S = 10.0  # for the answers of all replicas to one question
_OBJECT_STORE_BYTES = 128 << 20  # requests and answers travel inside the calls

# What a call meets when nobody is there; KeyError is Serve's word for an application that does not run.
_GONE = (KeyError, TimeoutError, RayServeException, DeploymentUnavailableError, RayActorError)


class HandleBackend:
    """The replicas of each group behind Serve's handles; a request that lost its replica is asked again."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._groups = frozenset(groups)

    @property
    def groups(self) -> frozenset[str]:
        """See `Backend.groups`."""
        return self._groups

    async def ask(
        self, group: str, model: str, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int | None
    ) -> dict[str, Any]:
        """See `Backend.ask`. Answers have no effect on the world, so asking again is harmless."""
        for _ in range(3):
            try:
                return dict(await _base_handle(group).answer.remote(model, texts, pairs, max_tokens))
            except _GONE:
                await asyncio.sleep(_LOOK_S)
        raise TemporaryError("replica", "lost while it answered", "Serve is replacing it", "Send it again", delay_s=3.0)

    async def survey(self, group: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """See `Backend.survey`."""
        try:
            found = _base_handle(group).broadcast("report", list(wanted))
            reports = await found.results_async(timeout_s=_PATIENCE_S, return_exceptions=True)
        except _GONE:
            return []
        return [report for report in reports if isinstance(report, dict)]


@serve.ingress()
class ServeGateway:
    """A Serve replica around `petl_ray.serving.gateway.Gateway` and its FastAPI application."""

    def __init__(self, spec: dict[str, Any], database: str, groups: Sequence[str], layout: str) -> None:
        self._layout = layout
        self._gateway = Gateway(ServeSpec.model_validate(spec), Catalogue(database), HandleBackend(groups))
        self._following = asyncio.get_running_loop().create_task(self._gateway.follow())

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self._gateway)

    async def state(self) -> dict[str, Any]:
        """Its health, and which layout it was built for."""
        return {"layout": self._layout, **self._gateway.health()}


def deploy(spec: ServeSpec, *releases: Release, step: StepContext) -> Endpoint:
    """Serve what the names mean on the connected Ray and wait until every gateway and replica follows them.

    Needs `ray.init` before. Raises ConflictError for a port that somebody else holds, CapacityError for more replicas
    than fit the cluster's machines, AdapterError if the champion of a release's task is refused by its replicas,
    NotFoundError if no name stands yet, TemporaryError if it does not settle in time.
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
    # what serving stands on; the run that asks for it must not make servers look different
    services = {name: services[name] for name in ("database", "store", "home")}
    names, odd = Catalogue(services["database"]).names()
    if not names:
        reason = "; ".join(odd.values()) or "no adapter has been promoted"
        raise NotFoundError("serving", "no name to serve", reason, "Run a plan first, or `petl-ray adapters promote`")
    oldest_first = sorted(names.values(), key=lambda named: named.promotion_id)
    groups = {named.group.key: named.group for named in oldest_first}  # a base that was moved is read where it is now
    _check_room(spec, names, groups)
    _start_serve(spec)
    layout = _replace_what_differs(spec, services, groups, report)
    adapters = _wait(spec, services["database"], layout, groups, tasks, report, check)
    for name in serve.status().applications:
        if name.startswith(BASES) and name.removeprefix(BASES) not in groups:
            serve.delete(name)  # no name stands for an adapter of that base any more
    return Endpoint(url=f"http://{authority(spec)}", adapters=adapters)


@contextmanager
def local_serving(
    spec: ServeSpec, services: Mapping[str, str], cpus: int | None = None, report: Callable[..., None] | None = None
) -> Iterator[Endpoint]:
    """Serve on this machine until the block ends: starts Ray if none is connected, and stops what it started."""
    refuse_taken_port(spec)
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
        # Ray prints that calls to the controller failed: those that its end cut short. People take that for an error.
        ray._private.worker._worker_logs_enabled = False
        serve.shutdown()


def _replace_what_differs(
    spec: ServeSpec, services: Mapping[str, str], groups: Mapping[str, Group], report: Callable[..., None]
) -> str:
    """Start or replace each application that is not as asked, all at once; returns the layout of the gateways."""
    facts = {"spec": spec.model_dump(mode="json"), "services": dict(services)}
    layouts = {BASES + key: sha256_of({**facts, "group": group}) for key, group in groups.items()}
    layouts[GATEWAYS] = sha256_of({**facts, "groups": sorted(groups)})
    targets = []
    for name, layout in layouts.items():
        stands = _states() if name == GATEWAYS else _everyone(name, REPLICA, "report", [])
        if stands and all(state["layout"] == layout for state in stands):
            continue
        if name == GATEWAYS:
            application = _gateways(spec, services["database"], sorted(groups), layout)
        else:
            application = _replicas(spec, services, groups[name.removeprefix(BASES)], layout)
        route = "/" if name == GATEWAYS else None
        targets.append(serve.RunTarget(target=application, name=name, route_prefix=route, logging_config=_QUIET))
    if targets:
        report("serve.start", applications=[target.name for target in targets])
        try:
            serve.run_many(targets)
        except RuntimeError as error:
            raise CapacityError("serving", "Serve could not start an application", str(error)[:500]) from error
    return layouts[GATEWAYS]


def _replicas(spec: ServeSpec, services: Mapping[str, str], group: Group, layout: str) -> serve.Application:
    # A replacement that starts before the old replica stops needs room for both.
    room = ray.available_resources().get("CPU", 0.0) >= spec.replicas * spec.cpus_per_replica
    deployment = serve.deployment(BankReplica).options(
        name=REPLICA,
        num_replicas=spec.replicas,
        ray_actor_options={"num_cpus": spec.cpus_per_replica, "num_gpus": spec.gpus_per_replica},
        max_ongoing_requests=spec.max_waiting_rows,
        max_constructor_retry_count=3,
        max_surge_percent=100 if room else 0,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=min(10.0, spec.request_timeout_s),
        logging_config=_QUIET,
    )
    return deployment.bind(group.model_dump(mode="json"), spec.model_dump(mode="json"), dict(services), layout)


def _gateways(spec: ServeSpec, database: str, groups: list[str], layout: str) -> serve.Application:
    deployment = serve.deployment(ServeGateway).options(
        name=GATEWAY,
        num_replicas=spec.gateways,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4096,
        max_surge_percent=100,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=min(10.0, spec.request_timeout_s),
        logging_config=_QUIET,
    )
    return deployment.bind(spec.model_dump(mode="json"), database, groups, layout)


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
    """What every gateway says of itself."""
    return _everyone(GATEWAYS, GATEWAY, "state")


def _everyone(application: str, deployment: str, method: str, *values: Any) -> list[dict[str, Any]]:
    """What each replica of a deployment answers; empty where it does not run."""
    try:
        found = serve.get_deployment_handle(deployment, app_name=application).broadcast(method, *values)
        answers = found.results(timeout_s=_PATIENCE_S, return_exceptions=True)
    except _GONE:
        return []
    return [answer for answer in answers if isinstance(answer, dict)]


def _base_handle(group: str) -> Any:
    """Serve keeps handles by name, so this is a look-up."""
    return serve.get_deployment_handle(REPLICA, app_name=BASES + group)


def _start_serve(spec: ServeSpec) -> None:
    """Start Serve's proxy on the asked address; a Serve that stands must listen there already."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        refuse_taken_port(spec)
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
            f"got {authority(spec)}",
            f"Serve already runs on this cluster and listens on {stands[0]}:{stands[1]}",
            "Ask for that address, or stop the other application first",
        )


def _check_room(spec: ServeSpec, names: Mapping[str, Named], groups: Mapping[str, Group]) -> None:
    """Raise CapacityError for what could never start: more replicas than fit the machines, more names than slots."""
    check_machines(spec, len(groups), [node["Resources"] for node in ray.nodes() if node["Alive"]])
    for key, group in groups.items():
        count = sum(named.group.key == key for named in names.values())
        if count > spec.max_adapters:
            raise CapacityError(
                "serving.max_adapters",
                f"got {spec.max_adapters}",
                f"{count} names stand for adapters of base {group.base.pinned.digest[:12]}",
                f"Set it to {count} or more",
            )
