"""Whether questions fit beside their base, and how many of them side by side: asked of a session before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

from petl_ray.artifact import Dataset
from petl_ray.bank.memory import MOST_SLOTS, Machine, Takes, calibrate, plan_slots
from petl_ray.errors import CapacityError, PetlRayError, TemporaryError
from petl_ray.training.session import Session
from petl_ray.verb import Question, StepContext, usable_cpus

_OTHERS_S = 20.0  # before it is asked again whether others have left

Group = Mapping[int, tuple[Question, StepContext]]


def plan_group(session: Session, most: int, group: Group) -> tuple[int, dict[int, PetlRayError]]:
    """Slots for `group`, `most` at the most, and the questions of which memory does not hold even a row at a time: a
    TemporaryError where others hold today what would do.

    With `resources.slots_by_memory` no more slots than memory holds of the largest that fits; every step is told why.
    """
    given = next(iter(group.values()))[1].resources
    beside = given.beside([{"CPU": usable_cpus()}])  # parts of a GPU are told by `gpus` alone
    refused: dict[int, PetlRayError] = {}
    plans = {}
    for index, (question, step) in group.items():
        with suppress(PetlRayError):  # a question that cannot be asked is told so when it takes its slot
            figures = session.footprint(question.spec, len(cast("Dataset", question.inputs[0]).labels))
            machine = Machine(figures["device"], figures["machine_bytes"], figures["free_bytes"])
            empty = replace(machine, free_bytes=None).share(given.gpus, beside)
            share, bound = machine.share(given.gpus, beside), min(most, MOST_SLOTS[figures["device"]])
            calibration = calibrate(_remembered(step), figures["base"], figures["device"])
            exact = Takes.told(figures)
            one, base_bytes = exact.calibrated(calibration), figures["base_bytes"]
            needs = partial(plan_slots, base_bytes, one.slot_bytes)
            try:
                plans[index] = needs(share, bound, one.pass_bytes, exact.least_bytes), calibration
            except CapacityError as error:
                refused[index] = error
                with suppress(CapacityError):
                    needs(empty, bound, one.pass_bytes, exact.least_bytes)
                    why = "others hold the rest of this machine now"
                    refused[index] = TemporaryError(error.what, error.found, why, error.do, delay_s=_OTHERS_S)
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
