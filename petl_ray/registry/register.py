"""register: one adapter becomes one numbered version of its task's registered model."""

from __future__ import annotations

from petl_ray.artifact import Adapter, Release, Report
from petl_ray.registry.package import CARD, MANIFEST, write_package
from petl_ray.registry.spec import RegistrySpec
from petl_ray.registry.tracking import ADAPTER_TAG, ReleaseFiles, Tracking
from petl_ray.verb import StepContext


def register(spec: RegistrySpec, adapter: Adapter, report: Report, *, step: StepContext) -> Release:
    """Register `adapter` with what `report` says of it; the same adapter again is the same version.

    Uses the services `tracking`, `home`, and where they are given `run` and `plan` for the lineage. Raises
    ConflictError if the report is about another adapter, TemporaryError if MLflow stays busy or away.
    """
    model = spec.prefix + adapter.task
    lineage = {name: step.services[name] for name in ("run", "plan") if step.services.get(name)}
    package = step.out / "release"
    digest = write_package(package, step.fetch(adapter), spec, adapter, report, lineage)
    tracking = open_tracking(spec, step)
    step.report("register.start", model=model, adapter=adapter.digest)
    found = tracking.find(model, adapter.digest)
    if found is None:
        files = ReleaseFiles(
            package,
            digest,
            metrics={name: scored.value for name, scored in report.scores.items()},
            parameters=_facts(adapter, report),
            description=f"{adapter.method} adapter {adapter.digest[:12]}; {_headline(report)}",
        )
        description = f"Adapters of the task {adapter.task}. The name that counts is kept by petl-ray."
        found = tracking.add(model, description, files, _tags(adapter, report, digest))
    step.report("register.done", model=model, version=found.version)
    return Release(
        task=adapter.task,
        version=found.version,
        adapter=adapter,
        files=step.keep(f"release/{MANIFEST}", f"release/{CARD}"),
        about={"model": model, "source": found.source, "headline": _headline(report)},
    )


def open_tracking(spec: RegistrySpec, step: StepContext) -> Tracking:
    """MLflow at the step's `tracking` address; without a server its files lie below `home`, or where the spec says."""
    uri = step.services["tracking"]
    by_server = uri.startswith(("http://", "https://"))
    return Tracking(uri, spec.artifacts or (None if by_server else f"{step.services['home']}/mlartifacts"))


def _tags(adapter: Adapter, report: Report, manifest_digest: str) -> dict[str, str]:
    scores = {f"petl_ray.{metric}": f"{scored.value:.6g}" for metric, scored in report.scores.items()}
    facts = {f"petl_ray.{name}": value for name, value in _facts(adapter, report).items()}
    return facts | scores | {ADAPTER_TAG: adapter.digest, "petl_ray.manifest": manifest_digest}


def _facts(adapter: Adapter, report: Report) -> dict[str, str]:
    return {
        "base": adapter.base.digest,
        "precision": adapter.precision,
        "quantization": adapter.quantization,
        "method": adapter.method,
        "task_type": adapter.task_type,
        "dataset": report.dataset_digest,
        "report": report.digest,
        "trained_parameters": str(adapter.trained_parameters),
        "size_bytes": str(adapter.size_bytes),
    }


def _headline(report: Report) -> str:
    scored = report.scores[report.metric]
    return f"{report.metric} {scored.value:.4f} [{scored.low:.4f}, {scored.high:.4f}] on {report.rows} rows"
