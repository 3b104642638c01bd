"""`petl-ray serve` and `petl-ray predict`: the champions on one shared base, and asking them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from petl_ray.cli.options import AsJson, HomePath
from petl_ray.cli.screen import out, print_json, remark

URL = "http://127.0.0.1:8000"


def serve(
    plan: Annotated[
        Path | None, typer.Argument(help="Take the serving part of this plan (default: the defaults).")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.")] = None,
    port: Annotated[int | None, typer.Option(help="The port.")] = None,
    home: HomePath = None,
) -> None:
    """Serve every task's champion on one shared base until Ctrl-C. Promotions and rollbacks are followed in seconds."""
    from petl_ray.cli.ending import stay
    from petl_ray.cli.where import placement
    from petl_ray.orchestration import Home
    from petl_ray.plan import read_plan
    from petl_ray.serving import ServeSpec
    from petl_ray.serving.on_ray import local_serving

    asked = read_plan(plan).serving if plan else None
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    spec = ServeSpec.model_validate({**(asked or ServeSpec()).model_dump(), **changes})
    remark("Starting; the first start loads the base model.")
    with local_serving(spec, Home.at(home).services("serve"), cpus=placement("local").cores) as endpoint:
        for task, digest in endpoint.adapters.items():
            remark(f"  {task}  {digest[:12]}")
        stay(endpoint.url)


def predict(
    task: Annotated[str, typer.Argument(help="A task, or task@digest.", show_default=False)],
    text: Annotated[str | None, typer.Argument(help="The text.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="One text a line; - is standard input.")] = None,
    completion: Annotated[bool, typer.Option("--completion", help="The task completes prompts.")] = False,
    url: Annotated[str, typer.Option(help="The endpoint.", envvar="PETL_RAY_URL")] = URL,
    as_json: AsJson = False,
) -> None:
    """Ask a running endpoint; prints one answer a line, with --json everything including what answered."""
    from petl_ray.errors import PlanError
    from petl_ray.serving.client import complete
    from petl_ray.serving.client import predict as ask

    if (text is None) == (file is None):
        raise PlanError("predict", "give either a text or --file", do='petl-ray predict TASK "text"')
    texts = [text] if text is not None else _lines(file)
    answers = complete(url, task, texts) if completion else ask(url, task, texts)
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        said = answer["text"] if completion else f"{answer['label']}\t{answer['score']:.4f}"
        out.print(f"{said}\t{answered_by(answer)}", markup=False, soft_wrap=True)


def _lines(file: Path | None) -> list[str]:
    from petl_ray.errors import DataError

    stdin = file is None or str(file) == "-"
    try:
        text = sys.stdin.read() if stdin else Path(str(file)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(file), f"cannot be read ({error})", do="Give a UTF-8 text file") from None
    lines = text.removesuffix("\n").split("\n")
    blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None:
        name = "standard input" if stdin else str(file)
        raise DataError(
            f"{name} line {blank}", "is blank", "each line is a text, and gets one line of answer", "Remove it"
        )
    return lines


def answered_by(answer: Mapping[str, Any]) -> str:
    """What gave an answer, for people: task, version and the beginning of the adapter's digest."""
    about = answer["provenance"]
    return f"{about['task']} v{about['version']} {about['adapter'][:12]}"
