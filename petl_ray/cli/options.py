"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanPath = Annotated[Path, typer.Argument(help="A plan: one YAML file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B.C=VALUE",
        help="Change one value of the plan, written as in YAML; may be repeated. Below search.space the rest of the path "
        "is one key: defaults.search.space.method.rank=[2,4]; null takes it out.",
    ),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Only this task of the plan; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HomePath = Annotated[
    Path | None, typer.Option("--home", help="Where everything is kept (default: PETL_RAY_HOME, else .petl-ray here).")
]
ClusterPath = Annotated[
    str, typer.Option("--cluster", help="Where it runs: a YAML of cluster/, or auto, local, none (in this process).")
]
