"""What a step would cost, told before anything is paid: work in trainings and epochs, memory of base and slots."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from petl_ray.models.spec import LockedBase, TaskType
from petl_ray.spec import Spec
from petl_ray.training import TrainSpec
from petl_ray.tuning import SearchSpec, planned_work
from petl_ray.verb import Resources

_LABELS = 16  # heads are small beside everything else; the true count is known once the rows are prepared


def estimate(spec: Spec, resources: Resources, task_type: TaskType) -> dict[str, Any]:
    """`work` in words and `memory_bytes` (base, its adapters' state, activations; within a factor of two) of one step.

    Both are empty for steps that train nothing.
    """
    if isinstance(spec, SearchSpec):
        recipe = spec.template()
        assert isinstance(recipe, TrainSpec)
        work = planned_work(spec)
        told = f"{work['trials']} trials, about {work['full_trainings']} trainings of {recipe.epochs:g} epochs"
        return {"work": told, "memory_bytes": _memory(recipe, resources.slots, task_type) * resources.packs}
    if isinstance(spec, TrainSpec):
        return {"work": f"{spec.epochs:g} epochs", "memory_bytes": _memory(spec, 1, task_type)}
    return {"work": "", "memory_bytes": None}


def _memory(spec: TrainSpec, slots: int, task_type: TaskType) -> int:
    from petl_ray.bank import memory_estimate

    tokens = min(spec.tokens_per_step or spec.batch_size * spec.max_length, spec.batch_size * spec.max_length)
    loaded = _skeleton(spec.base, task_type)
    return int(loaded.parameters * loaded.compute_dtype.itemsize) + slots * memory_estimate(
        loaded, spec.method, _LABELS, tokens
    )


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
