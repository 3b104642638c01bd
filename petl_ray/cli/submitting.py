"""`petl-ray submit`: a plan as a job on a Ray cluster that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petl_ray.cli.options import PlanPath, Settings, Tasks
from petl_ray.cli.screen import out, remark


def submit(
    plan: PlanPath,
    address: Annotated[
        str, typer.Option("--address", help="The cluster's dashboard: http://host:8265.", show_default=False)
    ],
    token_file: Annotated[Path | None, typer.Option("--token-file", help="A file holding the cluster's token.")] = None,
    cluster: Annotated[Path | None, typer.Option("--cluster", help="A placement YAML that travels along.")] = None,
    remote_home: Annotated[
        str | None,
        typer.Option(
            "--remote-home", help="Where it keeps everything (default: PETL_RAY_HOME there, else ~/.petl-ray)."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
    settings: Settings = None,
    tasks: Tasks = None,
) -> None:
    """Submit a plan, follow its log and exit with its code. The same plan and data twice attaches to the same job."""
    from petl_ray.scheduling.submission import Cluster, follow
    from petl_ray.scheduling.submission import submit as send

    where = Cluster.at(address, token_file)
    job = send(
        where, plan, settings=tuple(settings or ()), tasks=tuple(tasks or ()), placement=cluster, home=remote_home
    )
    remark(f"{'Attached to' if job.attached else 'Submitted'} {job.id} on {job.address}.")
    if detach:
        return
    try:
        code = follow(where, job.id, lambda text: out.print(text, end="", markup=False, soft_wrap=True))
    except KeyboardInterrupt:
        remark(f"{job.id} goes on without you; the same command follows it again.")
        raise typer.Exit(130) from None
    raise typer.Exit(code)
