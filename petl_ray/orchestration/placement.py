"""Where a run happens and what each verb is given there. Never part of an identity: moving recomputes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from petl_ray.bank.memory import MOST_SLOTS
from petl_ray.errors import CapacityError, PlanError
from petl_ray.explain import explain
from petl_ray.orchestration.verbs import VERBS
from petl_ray.spec import Spec
from petl_ray.verb import Resources, usable_cpus

Auto = Literal["auto"]
Machine = Mapping[str, float]  # what it has in all, as Ray names it: CPU, GPU


class VerbResources(Spec):
    """What one execution of a verb is given; `auto` is filled from the machine or the cluster.

    `cpus: auto` is every core of the largest machine; `packs: auto` as many packs of `cpus` and `gpus` as they hold;
    `slots: auto` as many slots in each pack as its share of the memory holds, found out where the base is loaded.
    """

    cpus: Annotated[int, Field(ge=1)] | Auto = Field(1, description="whole cores, and so threads, of one process")
    gpus: float = Field(0.0, ge=0)
    workers: int = Field(1, ge=1, description="processes that train one adapter together")
    packs: Annotated[int, Field(ge=1)] | Auto = Field(
        1, description="processes that share the questions of one pack, or the trials of a search"
    )
    slots: Annotated[int, Field(ge=1)] | Auto = Field(
        4, description="adapters side by side over one base in one process"
    )


class Placement(Spec):
    """Where: `ray` is `local` (start one here), `auto` (join the cluster that is running here or at RAY_ADDRESS, else
    start one), `none` (run every step in this process, for tests and debugging) or an address.

    `verbs` gives resources by verb name; `default` is for every other verb.
    """

    name: str = "local"
    ray: str = "local"
    cpus: Annotated[int, Field(ge=1)] | Auto = "auto"
    gpus: Annotated[float, Field(ge=0)] | Auto = "auto"
    default: VerbResources = VerbResources()
    verbs: dict[str, VerbResources] = Field(
        default_factory=lambda: {name: VerbResources(packs="auto", slots="auto") for name in ("search", "train")}
    )

    @field_validator("verbs", mode="before")
    @classmethod
    def _known_verbs(cls, verbs: Any) -> Any:
        """Before the values are looked at: what is given to a verb that nobody knows would be given to nobody."""
        known = [verb.name for verb in VERBS]
        for name in verbs if isinstance(verbs, Mapping) else ():
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                do = f"Did you mean {near[0]}?" if near else "Name one of those, or use default"
                raise PlanError(f"verbs.{name}", "no such verb", f"there are {', '.join(known)}", do)
        return verbs

    def resources(self, verb: str, machines: Sequence[Machine] | None = None) -> Resources:
        """What `verb` is given on these machines (default: one with the cores of the placement, or of this machine).

        A number of `cpus` of the placement bounds what `auto` takes of them.
        """
        cores = [int(machine.get("CPU", 0)) for machine in machines] if machines else [self.cores]
        bound = sum(cores) if self.cpus == "auto" else self.cpus
        asked = self.verbs.get(verb, self.default)
        cpus = max(1, min(bound, max(cores))) if asked.cpus == "auto" else asked.cpus
        most = min(bound // max(1, cpus), sum(each // max(1, cpus) for each in cores))
        if asked.gpus and machines:
            most = min(most, Resources(cpus, asked.gpus).fit(machines))
        packs = max(1, most) if asked.packs == "auto" else asked.packs
        by_memory = asked.slots == "auto"
        slots = MOST_SLOTS["cuda" if asked.gpus else "cpu"] if asked.slots == "auto" else asked.slots
        return Resources(cpus, asked.gpus, asked.workers, packs, slots, by_memory)

    @property
    def cores(self) -> int:
        """The cores of the placement; `auto` means what this process may use."""
        return usable_cpus() if self.cpus == "auto" else self.cpus


def check_capacity(verb: str, asked: Resources, drives_ray: bool, machines: Sequence[Machine]) -> None:
    """Refuse before it starts what could never start; raises CapacityError.

    One process stands on one machine. Processes that must hold their cores at the same time (workers, the packs of a
    search) count together; packs of a verb that works by itself may queue.
    """
    together = asked.workers * (asked.packs if drives_ray else 1)
    do = "Lower cpus, gpus, packs or workers, or choose a bigger placement"
    for what, kind, each in (("cpus", "CPU", asked.cpus), ("gpus", "GPU", asked.gpus)):
        key, there = f"placement.verbs.{verb}.{what}", [machine.get(kind, 0.0) for machine in machines] or [0.0]
        if each > max(there):
            raise CapacityError(key, f"asks for {each:g} in one process", f"the largest machine has {max(there):g}", do)
        if each * together > sum(there):
            raise CapacityError(key, f"asks for {each * together:g} at once", f"there are {sum(there):g}", do)
    if asked.fit(machines) < together:
        found = f"asks for {together} processes of {asked.cpus} cpus and {asked.gpus:g} gpus at once"
        why = f"{asked.fit(machines)} fit on the {len(machines)} machines"
        raise CapacityError(f"placement.verbs.{verb}", found, why, do)


def load_placement(path: str | Path) -> Placement:
    """The placement that a YAML file describes; raises PlanError naming the key that is wrong."""
    source, document = Path(path), None
    try:
        document = yaml.safe_load(source.read_text()) or {}
        return Placement.model_validate(document)
    except OSError as error:
        near = ", ".join(sorted(one.name for one in source.parent.glob("*.yaml"))) or "no YAML file"
        raise PlanError(
            f"placement {source}", str(error.strerror), f"beside it lies {near}", "Name one of those"
        ) from error
    except yaml.YAMLError as error:
        raise PlanError(f"placement {source}", str(error).splitlines()[0], "it is no YAML", "Correct it") from error
    except ValidationError as error:
        first = error.errors()[0]
        ours = first.get("ctx", {}).get("error")
        if isinstance(ours, PlanError):
            raise PlanError(f"placement {source}: {ours.what}", ours.found, ours.why, ours.do) from error
        raise explain(error, Placement, document, f"placement {source}") from error
