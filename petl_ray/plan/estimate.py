"""What a step would cost, told before anything is paid: work in trainings and epochs, memory of base and slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from petl_ray.bank.memory import Machine, Takes, base_estimate, base_name, calibrate, plan_slots, takes
from petl_ray.models.spec import LockedBase, TaskType
from petl_ray.spec import Spec
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec, planned_work
from petl_ray.tuning.layout import Demand, lay_out, widest
from petl_ray.verb import Resources

_LABELS = 16  # heads are small beside everything else; the true count is known once the rows are prepared


def estimate(
    spec: Spec,
    resources: Resources,
    task_type: TaskType,
    machine: Machine | None = None,
    measured: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """`work` in words, `memory_bytes` (all packs with their base, adapters' state and activations; within a factor of
    two) and `packing`, how the slots of one step lie in the memory of `machine` and why.

    `measured` is what earlier runs measured. All are empty for steps that train nothing; without a `machine` there is
    no packing. Raises CapacityError where the machine has no room for one slot.
    """
    if isinstance(spec, SearchSpec):
        work = planned_work(spec)
        recipes = [recipe for recipe in widest(spec) if isinstance(recipe, TrainSpec)]
        told = f"{work['trials']} trials, about {work['full_trainings']} trainings of {recipes[0].epochs:g} epochs"
        demand = _demand(recipes, task_type, machine)
        if machine is None:
            pack_bytes = demand.base_bytes + demand.pass_bytes + resources.slots * demand.slot_bytes
            return {"work": told, "memory_bytes": int(pack_bytes * resources.packs), "packing": None}
        layout = lay_out(spec.engine, resources, resources.packs, [demand], measured)
        pack_bytes = layout.base_bytes + layout.pass_bytes + layout.slots * layout.slot_bytes
        packing = {"packs": resources.packs, **layout.told(), "why": str(layout)}
        return {"work": told, "memory_bytes": pack_bytes * resources.packs, "packing": packing}
    if isinstance(spec, TrainSpec):
        demand = _demand([spec], task_type, machine)
        alone = None if machine is None else _one(demand, resources, measured)
        beside = demand.slot_bytes + demand.pass_bytes if alone is None else alone["slot_bytes"] + alone["pass_bytes"]
        memory_bytes = int(demand.base_bytes + beside)
        return {"work": f"{spec.epochs:g} epochs", "memory_bytes": memory_bytes, "packing": alone}
    return {"work": "", "memory_bytes": None, "packing": None}


def _one(demand: Demand, resources: Resources, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One training in its share of the machine; who shares a process with it is seen when its pack is dealt out."""
    calibration = calibrate(measured, demand.base, demand.device)
    slot_bytes, pass_bytes = demand.slot_bytes * calibration.ratio, demand.pass_bytes * calibration.ratio
    share = Machine(demand.device, int(demand.machine_bytes)).share(resources.gpus, resources.packs)
    plan = plan_slots(demand.base_bytes, slot_bytes, share, resources.slots, pass_bytes)
    return {
        "packs": resources.packs,
        "slots": plan.slots,
        "why": f"at most {plan.why}" if plan.slots > 1 else plan.why,
        "base_bytes": int(demand.base_bytes),
        "slot_bytes": int(slot_bytes),
        "pass_bytes": int(pass_bytes),
        "machine_bytes": int(share),
        "calibration": calibration.told,
    }


def _demand(recipes: Sequence[TrainSpec], task_type: TaskType, machine: Machine | None) -> Demand:
    """What the first recipe takes, and the largest of them, beside a base of which only the structure is loaded."""
    base = recipes[0].base
    loaded = _skeleton(base, task_type)
    device, free = (machine.device, machine.bytes) if machine else ("cpu", 0)
    shared = device != "cpu" or base.quantization == "none"  # of a CPU only trying tells; most can
    needs = [_takes(loaded, recipe, task_type, device, shared) for recipe in recipes]
    return Demand(
        session=task_type,
        base=base_name(base),
        device=device,
        base_bytes=base_estimate(loaded),
        slot_bytes=needs[0].slot_bytes,
        pass_bytes=needs[0].pass_bytes,
        widest_bytes=max(one.slot_bytes for one in needs),
        widest_pass_bytes=max(one.pass_bytes for one in needs),
        machine_bytes=free,
        shared=shared,
    )


def _takes(loaded: Any, spec: TrainSpec, task_type: TaskType, device: str, shared: bool) -> Takes:
    from petl_ray.methods import count_parameters

    parameters = count_parameters(loaded.model, spec.method, _LABELS if task_type == "classification" else 0)
    tokens = min(spec.tokens_per_step or spec.batch_size * spec.max_length, spec.batch_size * spec.max_length)
    return takes(loaded, device, parameters, tokens, shared)


@lru_cache(maxsize=4)
def _skeleton(base: LockedBase, task_type: TaskType) -> Any:
    import torch

    from petl_ray.models.device import DTYPES
    from petl_ray.models.loading import LoadedBase, load_skeleton

    model = load_skeleton(base, task_type)
    return LoadedBase(
        base=base,
        task_type=task_type,
        model=model,
        tokenizer=None,
        tokenizer_digest="",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=torch.device("meta"),
        compute_dtype=DTYPES[base.precision],
        pad_id=0,
    )
