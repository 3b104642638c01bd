"""Whether a cluster can ever hold the replicas that are asked for: each stands whole on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petl_ray.errors import CapacityError
from petl_ray.serving.spec import ServeSpec


def check_machines(spec: ServeSpec, bases: int, machines: Sequence[Mapping[str, float]]) -> None:
    """Raise CapacityError unless `machines` (each its resources, `CPU` and `GPU`) hold all replicas of `bases` bases."""
    found = sum(places(spec, machine) for machine in machines)
    if spec.replicas * bases <= found:
        return
    gpus = f" and {spec.gpus_per_replica:g} GPUs" if spec.gpus_per_replica else ""
    have = ", ".join(f"{one.get('CPU', 0):g} and {one.get('GPU', 0):g}" for one in machines)
    raise CapacityError(
        "serving.replicas",
        f"got {spec.replicas} for each of {bases} bases, with {spec.cpus_per_replica} cores{gpus} on one machine",
        f"the cluster has room for {found} (cores and GPUs of its machines: {have})",
        "Ask for fewer replicas, cores or GPUs",
    )


def places(spec: ServeSpec, machine: Mapping[str, float]) -> int:
    """How many replicas one machine holds. A part of a GPU is a part of one GPU, never of two."""
    by_cpus = int(machine.get("CPU", 0) // spec.cpus_per_replica)
    wanted, there = spec.gpus_per_replica, machine.get("GPU", 0)
    if not wanted:
        return by_cpus
    by_gpus = int(there) * int(1 / wanted + 1e-9) if wanted < 1 else int(there // wanted)
    return min(by_cpus, by_gpus)
