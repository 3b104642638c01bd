"""Serving without a driver: an application that keeps the champions' applications up. What a RayService runs.

It brings up what the names ask for and looks again every half minute, so that a first promotion, or one onto a base that
nobody served yet, is followed without a run.
"""

from __future__ import annotations

import threading
from typing import Any

from ray import serve

from petl_ray.errors import NotFoundError, PetlRayError
from petl_ray.orchestration.home import Home
from petl_ray.serving import ServeSpec
from petl_ray.serving.on_ray import bring_up

LOOK_EVERY_S = 30.0


class Steward:
    """Keeps gateways and replicas as the names ask; unhealthy while they cannot be."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = ServeSpec.model_validate(spec)
        self._services = Home.at().services("steward")
        self._trouble = ""
        threading.Thread(target=self._keep, name="steward", daemon=True).start()

    def check_health(self) -> None:
        """Serve asks this; raises with what is wrong."""
        if self._trouble:
            raise RuntimeError(self._trouble)

    def __call__(self) -> dict[str, str]:
        """What is wrong, if anything."""
        return {"trouble": self._trouble}

    def _keep(self) -> None:
        pause = threading.Event()
        while True:
            try:
                bring_up(self._spec, self._services)
                self._trouble = ""
            except NotFoundError:
                self._trouble = ""  # nothing is promoted yet: that is no illness
            except PetlRayError as error:
                self._trouble = str(error)
            pause.wait(LOOK_EVERY_S)


def application(args: dict[str, Any]) -> serve.Application:
    """The application for `serveConfigV2`: `args` are fields of a ServeSpec; the home comes from the environment."""
    spec = ServeSpec.model_validate(args).model_dump(mode="json")
    deployment = serve.deployment(Steward).options(
        name="steward", num_replicas=1, ray_actor_options={"num_cpus": 0}, health_check_period_s=10
    )
    return deployment.bind(spec)
