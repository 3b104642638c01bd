"""register: one adapter becomes one numbered version of its task's registered model."""

from __future__ import annotations

from collections.abc import Mapping

from petl_ray.artifact import Adapter, Release, Report, Trial
from petl_ray.registry.lineage import TAG, lineage_of
from petl_ray.registry.package import CARD, MANIFEST, write_package
from petl_ray.registry.spec import RegistrySpec
from petl_ray.registry.tracking import ADAPTER_TAG, MANIFEST_TAG, ReleaseFiles, Tracking
from petl_ray.verb import StepContext


def register(
    spec: RegistrySpec, adapter: Adapter, report: Report, trial: Trial | None = None, *, step: StepContext
) -> Release:
    """Register `adapter` with what `report` says of it; the same adapter again is the same version.

    `trial` is the search that found its recipe, if one did. The version's tags tell the lineage of the first run that
    registered it, `about["lineage"]` of the Release that of this one.

    Uses the services `tracking`, `home`, and where they are given `run`, `plan` and `verbs` for the lineage. Raises
    ConflictError if the report is about another adapter, TemporaryError if MLflow stays busy or away.
    """
    model = spec.prefix + adapter.task
    lineage = lineage_of(adapter, report, trial, step.services)
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
        found = tracking.add(model, description, files, _tags(adapter, report, digest, lineage))
    step.report("register.done", model=model, version=found.version)
    return Release(
        task=adapter.task,
        version=found.version,
        adapter=adapter,
        traces=step.keep(f"release/{MANIFEST}", f"release/{CARD}"),  # they name the run, which bears no identity
        about={"model": model, "source": found.source, "headline": _headline(report), "lineage": lineage},
    )


def open_tracking(spec: RegistrySpec, step: StepContext) -> Tracking:
    """MLflow at the step's `tracking` address; without a server its files lie below `home`, or where the spec says."""
    uri = step.services["tracking"]
    by_server = uri.startswith(("http://", "https://"))
    return Tracking(uri, spec.artifacts or (None if by_server else f"{step.services['home']}/mlartifacts"))


def _tags(adapter: Adapter, report: Report, manifest_digest: str, lineage: Mapping[str, str]) -> dict[str, str]:
    scores = {TAG + metric: f"{scored.value:.6g}" for metric, scored in report.scores.items()}
    facts = {TAG + name: value for name, value in {**_facts(adapter, report), **lineage}.items()}
    return facts | scores | {ADAPTER_TAG: adapter.digest, MANIFEST_TAG: manifest_digest}


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
