"""Orchestration: the durable run. A pipeline is handed a `Run` and names verbs; what they answer is kept for ever.

In: verbs, Specs, artifacts, a placement. Out: artifacts, a journal, events. It must not know what any verb means.

`run.make` answers a pure question once for all runs, `run.pack` many questions in one execution, `run.each` walks
through items side by side, `run.do` touches the world once a run. `start_run` opens or resumes a run, `rehearse` says
what a run would do, `ask` what is so on the machines of a placement, `runs` is what people ask about runs.
"""

from petl_ray.orchestration import runs
from petl_ray.orchestration.asking import ask, machines, remembered
from petl_ray.orchestration.home import Home
from petl_ray.orchestration.lifecycle import start_run
from petl_ray.orchestration.placement import Placement, load_placement
from petl_ray.orchestration.rehearsal import PlannedStep, Rehearsal, rehearse
from petl_ray.orchestration.run import Outcomes, Run

__all__ = [
    "Home",
    "Outcomes",
    "Placement",
    "PlannedStep",
    "Rehearsal",
    "Run",
    "ask",
    "load_placement",
    "machines",
    "rehearse",
    "remembered",
    "runs",
    "start_run",
]
