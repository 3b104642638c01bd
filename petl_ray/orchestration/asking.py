"""Asking before anything is paid: what a plain function answers on the machines where a verb's work will be done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petl_ray.orchestration import journal
from petl_ray.orchestration.home import Home, opened
from petl_ray.orchestration.placement import Placement
from petl_ray.verb import load


def ask(placement: Placement, verb: str, question: str) -> list[Any]:
    """The answer of each machine that could do the work of `verb`; at least one.

    `question` is the import name (`package.module:name`) of a function without arguments. Where the placement is this
    machine (`local`, `none`, or `auto` while no cluster runs here) it is answered here, and no Ray is started. Raises
    CapacityError if no machine of the cluster has what `verb` is given, TemporaryError if the cluster does not answer,
    and what the function raises.
    """
    if placement.ray not in ("local", "none"):
        from petl_ray.orchestration.on_ray import ask_machines  # Ray takes a second to import

        answers = ask_machines(placement, verb, question)
        if answers is not None:
            return answers
    return [load(question)()]


def machines(placement: Placement) -> list[Mapping[str, float]]:
    """What each machine of the placement has in all, as Ray names it; asked as `ask` does.

    Where no Ray runs there is one, with the cores of the placement. Raises TemporaryError if the cluster does not answer.
    """
    if placement.ray not in ("local", "none"):
        from petl_ray.orchestration.on_ray import machines_there

        there = machines_there(placement)
        if there is not None:
            return there
    return [{"CPU": float(placement.cores)}]


def remembered(home: Home, what: str) -> list[Mapping[str, Any]]:
    """What earlier runs say of their outcomes under `what`; see `petl_ray.verb.StepContext.remembered`."""
    with opened(home).database.read() as conn:
        return journal.told_about(conn, what)
