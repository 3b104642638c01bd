"""Whether questions fit beside their base, and how many of them side by side: asked of a session before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from petl_ray.artifact import Dataset
from petl_ray.bank.memory import MOST_SLOTS, Machine, Takes, calibrate, plan_slots
from petl_ray.errors import CapacityError, PetlRayError
from petl_ray.training.session import Session
from petl_ray.verb import Question, StepContext, usable_cpus

Group = Mapping[int, tuple[Question, StepContext]]


def plan_group(session: Session, most: int, group: Group) -> tuple[int, dict[int, CapacityError]]:
    """Slots for `group`, `most` at the most, and the questions of which memory does not hold even a row at a time.

    With `resources.slots_by_memory` no more slots than memory holds of the largest that fits; every step is told why.
    """
    given = next(iter(group.values()))[1].resources
    beside = given.beside([{"CPU": usable_cpus()}])  # parts of a GPU are told by `gpus` alone
    refused: dict[int, CapacityError] = {}
    plans = {}
    for index, (question, step) in group.items():
        with suppress(PetlRayError):  # a question that cannot be asked is told so when it takes its slot
            figures = session.footprint(question.spec, len(cast("Dataset", question.inputs[0]).labels))
            machine = Machine(figures["device"], figures["machine_bytes"], figures["free_bytes"])
            share, bound = machine.share(given.gpus, beside), min(most, MOST_SLOTS[figures["device"]])
            calibration = calibrate(_remembered(step), figures["base"], figures["device"])
            exact = Takes.told(figures)
            one, base_bytes = exact.calibrated(calibration), figures["base_bytes"]
            try:
                plan = plan_slots(base_bytes, one.slot_bytes, share, bound, one.pass_bytes, exact.least_bytes)
                plans[index] = plan, calibration
            except CapacityError as error:
                refused[index] = error
    if not given.slots_by_memory or not plans:
        return most, refused
    least = min(plans, key=lambda index: plans[index][0].slots)
    plan, calibration = plans[least]
    for index, (_, step) in group.items():
        if index not in refused:
            step.report("train.slots", slots=plan.slots, why=plan.why, calibration=calibration.told)
    return plan.slots, refused


def _remembered(step: StepContext) -> list[Mapping[str, Any]]:
    """What earlier runs took; nothing where nobody can tell, since it only makes the estimate better."""
    with suppress(PetlRayError):
        return step.remembered("memory")
    return []
