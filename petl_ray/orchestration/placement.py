"""Where a run happens and what each verb is given there. Never part of an identity: moving recomputes nothing."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from petl_ray.errors import CapacityError, PlanError
from petl_ray.spec import Spec
from petl_ray.verb import Resources

Auto = Literal["auto"]


class VerbResources(Spec):
    """What one execution of a verb is given; `auto` is filled from the machine or the cluster.

    `cpus: auto` is every core there is; `packs: auto` as many packs of `cpus` as the cores allow.
    """

    cpus: int | Auto = Field(1, description="whole cores, and so threads, of one process")
    gpus: float = Field(0.0, ge=0)
    workers: int = Field(1, ge=1, description="processes that train one adapter together")
    packs: int | Auto = Field(
        1, description="processes that share the questions of one pack, or the trials of a search"
    )
    slots: int = Field(4, ge=1, description="adapters side by side over one base in one process")


class Placement(Spec):
    """Where: `ray` is `local` (start one here), `auto` (join the cluster that is running here or at RAY_ADDRESS, else
    start one), `none` (run every step in this process, for tests and debugging) or an address.

    `verbs` gives resources by verb name; `default` is for every other verb.
    """

    name: str = "local"
    ray: str = "local"
    cpus: int | Auto = "auto"
    gpus: float | Auto = "auto"
    default: VerbResources = VerbResources()
    verbs: dict[str, VerbResources] = Field(
        default_factory=lambda: {name: VerbResources(packs="auto", slots=8) for name in ("search", "train")}
    )

    def resources(self, verb: str, cores: int | None = None) -> Resources:
        """What `verb` is given where there are `cores` cores (default: what the placement or this machine has)."""
        total = cores or self.cores
        asked = self.verbs.get(verb, self.default)
        cpus = total if asked.cpus == "auto" else asked.cpus
        packs = max(1, total // max(1, cpus)) if asked.packs == "auto" else asked.packs
        return Resources(cpus=cpus, gpus=asked.gpus, workers=asked.workers, packs=packs, slots=asked.slots)

    @property
    def cores(self) -> int:
        """The cores of the placement; `auto` means what this process may use."""
        return usable_cpus() if self.cpus == "auto" else self.cpus


def check_capacity(verb: str, asked: Resources, drives_ray: bool, cores: float, gpus: float) -> None:
    """Refuse before it starts what could never start; raises CapacityError.

    Parts that must hold their cores at the same time (workers, the packs of a search) count together; packs of a verb
    that works by itself may queue.
    """
    together = asked.workers * (asked.packs if drives_ray else 1)
    for what, wanted, there in (("cpus", asked.cpus * together, cores), ("gpus", asked.gpus * together, gpus)):
        if wanted > there:
            raise CapacityError(
                f"placement.verbs.{verb}.{what}",
                f"asks for {wanted:g} at once",
                f"there are {there:g}",
                "Lower cpus, packs or workers, or choose a bigger placement",
            )


def load_placement(path: str | Path) -> Placement:
    """The placement that a YAML file describes; raises PlanError naming the key that is wrong."""
    source = Path(path)
    try:
        return Placement.model_validate(yaml.safe_load(source.read_text()) or {})
    except OSError as error:
        near = ", ".join(sorted(one.name for one in source.parent.glob("*.yaml"))) or "no YAML file"
        raise PlanError(
            f"placement {source}", str(error.strerror), f"beside it lies {near}", "Name one of those"
        ) from error
    except yaml.YAMLError as error:
        raise PlanError(f"placement {source}", str(error).splitlines()[0], "it is no YAML", "Correct it") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"placement {source}: {key}", f"got {first['input']!r}", first["msg"], "Correct it") from error


def usable_cpus() -> int:
    """Whole cores this process may use: its affinity, bounded by the quota of its control group (v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count
