"""What a version was made from and by whom it was asked for: plain facts by name, the same in every place that shows them.

They stand as tags of the MLflow version, in its manifest and its card, and in the promotion rows (`adapters why`). They
bear no identity: a run's id is among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from petl_ray import __version__
from petl_ray.artifact import Adapter, Report, Trial
from petl_ray.fingerprint import canonical_json

TAG = "petl_ray."
NAMES = ("run", "plan", "dataset", "base", "report", "trial", "trial_number", "overrides", "verbs", "code")
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "ray")


def lineage_of(adapter: Adapter, report: Report, trial: Trial | None, services: Mapping[str, str]) -> dict[str, str]:
    """The facts in the order of NAMES; what nobody knows (a step without a run, a recipe without a search) is left out.

    `run` is the run that registered; `plan`, `dataset`, `base`, `report` and `trial` are digests; `overrides` is what
    the trial changed in the recipe, as JSON; `verbs` names versions, which every answer found or computed agrees with;
    `code` is what was installed where it was registered.
    """
    facts = {name: services[name] for name in ("run", "plan", "verbs") if services.get(name)}
    facts |= {"dataset": report.dataset_digest, "base": adapter.base.digest, "report": report.digest, "code": _code()}
    if trial is not None:
        facts |= {"trial": trial.digest, "trial_number": str(trial.number)}
        facts["overrides"] = canonical_json(trial.overrides)
    return in_order(facts)


def lineage_in(tags: Mapping[str, str]) -> dict[str, str]:
    """The facts that the tags of an MLflow version tell."""
    return {name: tags[TAG + name] for name in NAMES if TAG + name in tags}


def in_order(facts: Mapping[str, str]) -> dict[str, str]:
    """The facts in the order of NAMES; a journal does not keep theirs."""
    return {name: facts[name] for name in NAMES if name in facts}


def _code() -> str:
    found = [f"petl-ray {__version__}"]
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
