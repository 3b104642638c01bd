"""What a step would cost, told before anything is paid: work in trainings and epochs, memory of base and slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from petl_ray.bank.memory import Machine, Takes, base_estimate, base_name, calibrate, plan_slots, takes
from petl_ray.errors import AdapterError, CapacityError, PlanError
from petl_ray.models.spec import LockedBase, TaskType
from petl_ray.spec import Spec, with_overrides
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec, planned_work
from petl_ray.tuning.layout import Demand, choices, highest, largest, lay_out, most_each, trials_under_way, widest
from petl_ray.verb import Resources

_LABELS = 16  # heads are small beside everything else; the true count is known once the rows are prepared


def estimate(
    spec: Spec,
    resources: Resources,
    task_type: TaskType,
    machine: Machine | None = None,
    measured: Sequence[Mapping[str, Any]] = (),
    beside: int = 1,
    under_way: int | None = None,
) -> dict[str, Any]:
    """`work` in words, `memory_bytes` (all packs with their base, adapters' state and activations; within a factor of
    two) and `packing`, how the slots of one step lie in the memory of `machine` and why.

    `measured` is what earlier runs measured, `beside` how many processes of the step share the machine, `under_way` how
    many trials are at once, with those of searches beside this one. All are empty for steps that train nothing; without
    a `machine` there is no packing. Raises CapacityError where the machine has no room for one slot, AdapterError for a
    method, or a choice of a search, that the base has no place for, and PlanError for rows longer than it has positions.
    """
    if isinstance(spec, SearchSpec):
        work = planned_work(spec)
        recipe = _recipes(spec)[0]
        told = f"{work['trials']} trials, about {work['full_trainings']:.1f} trainings of {_epochs(recipe)}"
        _refuse_placeless(spec, recipe, task_type)
        _refuse_over_limit(spec, recipe, task_type)
        demand = _demand(_recipes(spec), task_type, machine, 1, spec.limits.memory_bytes)
        under_way = under_way or trials_under_way([spec])
        if machine is None:
            one, slots = demand.recipe, min(resources.slots, most_each(under_way, resources.packs))
            pack_bytes = demand.base_bytes + one.pass_bytes + slots * one.slot_bytes
            return {"work": told, "memory_bytes": int(pack_bytes * resources.packs), "packing": None}
        layout = lay_out(spec.engine, resources, beside, [demand], measured, under_way)
        pack_bytes = layout.base_bytes + layout.pass_bytes + layout.slots * layout.slot_bytes
        packing = {"packs": resources.packs, **layout.told(), "why": str(layout)}
        return {"work": told, "memory_bytes": pack_bytes * resources.packs, "packing": packing}
    if isinstance(spec, TrainSpec):
        demand = _demand([spec], task_type, machine, resources.workers)
        alone = None if machine is None else _one(demand, resources, measured, beside)
        taken = _told(demand.recipe) if alone is None else alone
        memory_bytes = int(demand.base_bytes + taken["slot_bytes"] + taken["pass_bytes"]) * resources.workers
        return {"work": _epochs(spec), "memory_bytes": memory_bytes, "packing": alone}
    return {"work": "", "memory_bytes": None, "packing": None}


def slots_side_by_side(
    spec: TrainSpec | SearchSpec, resources: Resources, task_type: TaskType, machine: Machine, beside: int
) -> int:
    """How many of the largest adapters that `spec` may ask for one pack holds, were nothing else on `machine`.

    What is free today and what was measured before is left out: the answer may bear identity. Raises AdapterError and
    PlanError as `estimate` does.
    """
    limit = spec.limits.memory_bytes if isinstance(spec, SearchSpec) else None
    demand = _demand(_recipes(spec), task_type, machine, resources.workers, limit)
    share, most = replace(machine, free_bytes=None).share(resources.gpus, beside), resources.slots
    try:
        plan = plan_slots(demand.base_bytes, demand.widest.slot_bytes, share, most, demand.widest.pass_bytes)
    except CapacityError:
        return 1
    return plan.slots


def _recipes(spec: TrainSpec | SearchSpec) -> list[TrainSpec]:
    """The recipe of a training, or that of a search with the largest that its space allows."""
    recipes = [spec] if isinstance(spec, TrainSpec) else widest(spec)
    return [recipe for recipe in recipes if isinstance(recipe, TrainSpec)]


def _refuse_placeless(spec: SearchSpec, recipe: TrainSpec, task_type: TaskType) -> None:
    """AdapterError or PlanError for what the space offers and the base has no place for, with the recipe as it is
    otherwise."""
    loaded = _skeleton(recipe.base, task_type, "cpu")
    _takes(loaded, recipe, task_type, "cpu", 1)  # what is wrong with the recipe itself is said of it
    offered = [*choices(spec), *highest(spec)]
    for path, value in offered:
        beside = [{other: theirs} for other, theirs in offered if other != path]
        found: AdapterError | PlanError | None = None
        for others in ({}, *beside):  # one that goes with some other choice is told by its trials
            try:
                with suppress(ValidationError):
                    _takes(loaded, with_overrides(recipe, {**others, path: value}), task_type, "cpu", 1)
                break
            except (AdapterError, PlanError) as error:
                found = found or error
        else:
            assert found is not None
            raise found.within("search.space") from found


def _refuse_over_limit(spec: SearchSpec, recipe: TrainSpec, task_type: TaskType) -> None:
    """PlanError for a limit that the recipe itself does not keep, with no more labels than two: it is always trained."""
    from petl_ray.methods import count_parameters

    if (limit := spec.limits.trained_share) is None:
        return
    loaded, labels = _skeleton(recipe.base, task_type, "cpu"), 2 if task_type == "classification" else 0
    share = count_parameters(loaded.model, recipe.method, labels) / loaded.parameters
    if share > limit:
        why = f"the recipe of training, which every search trains first, trains {share:.2g} of all parameters"
        raise PlanError("search.limits.trained_share", f"got {limit:g}", why, "Raise the limit or lower the recipe")


def _epochs(recipe: TrainSpec) -> str:
    return f"{recipe.epochs:g} epoch{'' if recipe.epochs == 1 else 's'}"


def _one(demand: Demand, resources: Resources, measured: Sequence[Mapping[str, Any]], beside: int) -> dict[str, Any]:
    """One training in its share of the machine; who shares a process with it is seen when its pack is dealt out.

    Workers that train one adapter together have one slot each.
    """
    calibration = calibrate(measured, demand.base, demand.device)
    one, share = demand.recipe.calibrated(calibration), demand.machine.share(resources.gpus, beside)
    most, least = 1 if resources.workers > 1 else resources.slots, demand.recipe.least_bytes
    plan = plan_slots(demand.base_bytes, one.slot_bytes, share, most, one.pass_bytes, least)
    slots, why = plan.slots, f"at most {plan.why}" if plan.slots > 1 else plan.why
    if not resources.slots_by_memory and slots < most:
        slots, why = most, f"{most} slots as placed, but {plan.why}"
    told = {"base_bytes": int(demand.base_bytes), **_told(one), "machine_bytes": int(share)}
    return {"packs": resources.packs, "slots": slots, "why": why, **told, "calibration": calibration.told}


def _told(one: Takes) -> dict[str, int]:
    return {"slot_bytes": int(one.slot_bytes), "pass_bytes": int(one.pass_bytes)}


def _demand(
    recipes: Sequence[TrainSpec], task_type: TaskType, machine: Machine | None, workers: int, limit: int | None = None
) -> Demand:
    """What the first recipe takes, and the largest of them, beside a base of which only the structure is loaded.

    Others than the first that the base has no place for, or that need more than `limit` bytes a slot, are left out:
    their trials are never trained.
    """
    base = recipes[0].base
    machine = machine or Machine("cpu", 0)
    loaded = _skeleton(base, task_type, machine.device)
    needs = [_takes(loaded, recipes[0], task_type, machine.device, workers)]
    for recipe in recipes[1:]:
        with suppress(AdapterError, PlanError):
            needed = _takes(loaded, recipe, task_type, machine.device, workers)
            if limit is None or _slot_bytes(loaded, recipe, task_type) <= limit:
                needs.append(needed)
    return Demand(
        session=task_type,
        base=base_name(base),
        device=machine.device,
        base_bytes=base_estimate(loaded),
        recipe=needs[0],
        widest=largest(needs),
        machine=machine,
        shared=True,  # of a CPU only trying tells; most can
    )


def _takes(loaded: Any, spec: TrainSpec, task_type: TaskType, device: str, workers: int) -> Takes:
    from petl_ray.methods import count_parameters
    from petl_ray.models.positions import refuse_longer
    from petl_ray.training.memory import steps_of

    refuse_longer(loaded.model, spec.max_length)
    parameters = count_parameters(loaded.model, spec.method, _labels(task_type))
    return takes(loaded, device, parameters, steps_of(loaded, spec, workers), shared=workers == 1)


def _slot_bytes(loaded: Any, spec: TrainSpec, task_type: TaskType) -> int:
    """What `limits.memory_bytes` bounds."""
    from petl_ray.training.memory import slot_estimate

    return slot_estimate(loaded, spec, _labels(task_type))


def _labels(task_type: TaskType) -> int:
    return _LABELS if task_type == "classification" else 0


@lru_cache(maxsize=4)
def _skeleton(base: LockedBase, task_type: TaskType, device: str) -> Any:
    import torch

    from petl_ray.models.device import DTYPES
    from petl_ray.models.loading import LoadedBase, load_skeleton

    model = load_skeleton(base, task_type, device)
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
