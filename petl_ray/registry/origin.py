"""Where a version comes from: the Release that was judged here, or else rebuilt from what MLflow keeps of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from petl_ray.artifact import Release
from petl_ray.errors import AdapterError
from petl_ray.registry.lineage import lineage_in
from petl_ray.registry.package import read_adapter
from petl_ray.registry.promotions import release_of
from petl_ray.registry.tracking import ADAPTER_TAG, Tracking
from petl_ray.store import Database


def release_from(database: Database, mlflow: Tracking, task: str, model: str, version: int) -> Release | None:
    """The Release of one version of `task`; None if there is no such version.

    Raises AdapterError if MLflow's version was not registered by this project, or its manifest is broken.
    """
    known = release_of(database, task, version)
    if known is not None:
        return known
    found = mlflow.version(model, version)
    if found is None:
        return None
    if ADAPTER_TAG not in found.tags:
        raise AdapterError(
            f"MLflow model {model} version {version}",
            "was not registered by petl-ray",
            "what it holds was never verified",
            "Register an adapter with `petl-ray run`",
        )
    with tempfile.TemporaryDirectory() as directory:
        adapter = read_adapter(mlflow.download(found, "manifest.json", Path(directory)))
    if adapter.digest != found.tags[ADAPTER_TAG] or adapter.task != task:
        raise AdapterError(
            f"MLflow model {model} version {version}",
            f"its manifest names adapter {adapter.digest[:12]} of {adapter.task}",
            "its tags say otherwise",
            "Register it anew",
        )
    about = {"model": model, "source": found.source, "lineage": lineage_in(found.tags)}
    return Release(task=task, version=version, adapter=adapter, about=about)
