"""The one door to MLflow: quiet, without pickle, patient with a busy database. MLflow is loaded when it is first used.

A registered model is a task, a version one adapter. A version's files belong to an MLflow run that also shows its
metrics, because that is the one place from which every kind of tracking server (database, S3, artifact proxy) serves
files. Versions are found again by the adapter's digest, so registering twice is registering once.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from petl_ray.errors import CapacityError, ConflictError, TemporaryError
from petl_ray.registry.opening import opening_alone

ADAPTER_TAG = "petl_ray.adapter"
MANIFEST_TAG = "petl_ray.manifest"

_Value = TypeVar("_Value")
_ATTEMPTS = 8
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_SECOND_TRY_S = 0.3
_BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
_BUSY_WORDS = ("IntegrityError", "database is locked", "Giving up after")
_AWAY_WORDS = ("Max retries exceeded", "connection refused", "could not connect", "timed out")  # MLflow waited already


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model: where its files are, and its tags."""

    model: str
    version: int
    source: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class ReleaseFiles:
    """What goes to MLflow for one version: a directory, its digest, and the figures and facts to show beside it."""

    directory: Path
    digest: str
    metrics: Mapping[str, float]
    parameters: Mapping[str, str]
    description: str


class Tracking:
    """An MLflow tracking and registry address (`sqlite:///…`, `postgresql://…`, `http://…`).

    `artifacts` says where a new experiment keeps its files; it is needed only where no server decides it. Calls raise
    TemporaryError where MLflow stays busy or away.
    """

    def __init__(self, uri: str, artifacts: str | None = None) -> None:
        self.uri = uri
        self._artifacts = artifacts
        _quieten()
        from mlflow import MlflowClient

        with opening_alone(uri):
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            patiently(lambda: self._client.search_registered_models(max_results=1))

    def find(self, model: str, adapter_digest: str) -> ModelVersion | None:
        """The version that holds this adapter: the lowest, if two were created at once; None if there is none."""
        query = f"name='{model}' and tags.`{ADAPTER_TAG}`='{adapter_digest}'"
        found = patiently(lambda: self._client.search_model_versions(query))
        return min((_version(each) for each in found), key=lambda each: each.version, default=None)

    def version(self, model: str, version: int) -> ModelVersion | None:
        """One version by its number; None if there is none."""
        found = patiently(lambda: self._client.get_model_version(model, str(version)), missing=None)
        return _version(found) if found is not None else None

    def add(self, model: str, description: str, files: ReleaseFiles, tags: Mapping[str, str]) -> ModelVersion:
        """Create a version from `files`; where somebody created one of the same adapter meanwhile, take theirs."""
        self._ensure_model(model, description)
        run_id, source = self._upload(model, files)
        create = self._client.create_model_version
        made = _version(
            patiently(lambda: create(model, source, run_id, tags=dict(tags), description=files.description))
        )
        first = self.find(model, tags[ADAPTER_TAG]) or made
        if first.version != made.version:
            patiently(lambda: self._client.delete_model_version(model, str(made.version)), missing=None)
        return first

    def alias(self, model: str, alias: str) -> int | None:
        """The version an alias points to; None if the alias, or the model, does not exist."""
        found = patiently(lambda: self._client.get_registered_model(model), missing=None)
        version = found.aliases.get(alias) if found is not None else None
        return int(version) if version is not None else None

    def point(self, model: str, alias: str, version: int) -> None:
        """Let an alias point to a version; last writer wins. Raises ConflictError if there is no such version."""
        done = patiently(
            lambda: self._client.set_registered_model_alias(model, alias, str(version)) or True, missing=False
        )
        if not done:
            raise ConflictError(
                f"MLflow model {model} version {version}",
                "does not exist",
                "its alias cannot point there",
                "Check that the tracking address is the one it was registered at",
            )

    def unpoint(self, model: str, alias: str) -> None:
        """Remove an alias; nothing happens if it does not exist."""
        patiently(lambda: self._client.delete_registered_model_alias(model, alias), missing=None)

    def tag(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            patiently(lambda k=key, v=value: self._client.set_model_version_tag(model, str(version), k, v))  # type: ignore[misc]

    def download(self, version: ModelVersion, name: str, directory: Path) -> Path:
        """One file of a version, below `directory`."""
        from mlflow.artifacts import download_artifacts

        uri = f"{version.source}/{name}"
        return Path(patiently(lambda: download_artifacts(uri, dst_path=str(directory), tracking_uri=self.uri)))

    def _ensure_model(self, model: str, description: str) -> None:
        if patiently(lambda: self._client.get_registered_model(model), missing=None) is None:
            patiently(lambda: self._client.create_registered_model(model, description=description), existing=None)

    def _upload(self, model: str, files: ReleaseFiles) -> tuple[str, str]:
        """An MLflow run that holds the files under their digest; an earlier attempt's run is used again."""
        experiment = self._experiment(model)
        query = f"tags.`{MANIFEST_TAG}` = '{files.digest}'"
        runs = patiently(lambda: self._client.search_runs([experiment], query, max_results=1))
        if runs:
            run = runs[0]
        else:
            tags = {MANIFEST_TAG: files.digest, "mlflow.runName": files.digest[:12]}
            run = patiently(lambda: self._client.create_run(experiment, tags=tags))
        run_id, source = run.info.run_id, f"{run.info.artifact_uri}/{files.digest}"
        if run.info.status != "FINISHED":
            self._put(run_id, files)
            self._show(run_id, files)
            patiently(lambda: self._client.set_terminated(run_id))
        return run_id, source

    def _put(self, run_id: str, files: ReleaseFiles) -> None:
        from botocore.exceptions import BotoCoreError

        for again in (True, True, False):
            try:
                patiently(lambda: self._client.log_artifacts(run_id, str(files.directory), files.digest))
                return
            except BotoCoreError as error:
                raise TemporaryError(
                    "MLflow's files", str(error), "the bucket is away", "Try again", delay_s=5.0
                ) from error
            except OSError as error:
                if again and error.errno not in _NO_ROOM:  # others write the same bytes to the same place just now
                    time.sleep(_SECOND_TRY_S)
                    continue
                why, do = "the release cannot be written there", "Make room, or name another place"
                raise CapacityError("MLflow's files", str(error), why, do) from error

    def _show(self, run_id: str, files: ReleaseFiles) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(key, value, 0, 0) for key, value in files.metrics.items()]
        params = [Param(key, value) for key, value in files.parameters.items()]
        patiently(lambda: self._client.log_batch(run_id, metrics=metrics, params=params))

    def _experiment(self, name: str) -> str:
        """The id of the experiment of that name, created if there is none."""
        found = patiently(lambda: self._client.get_experiment_by_name(name))
        if found is not None:
            return str(found.experiment_id)
        place = self._artifacts if "://" not in (self._artifacts or "") else f"{self._artifacts}/{name}"
        if place and "://" not in place:
            place = (Path(place).resolve() / name).as_uri()
        made = patiently(lambda: self._client.create_experiment(name, artifact_location=place), existing=None)
        return str(made) if made is not None else self._experiment(name)


_RAISE: Any = object()


def patiently(call: Callable[[], _Value], *, missing: Any = _RAISE, existing: Any = _RAISE) -> _Value:
    """Call MLflow; again, with growing and jittered pauses, while its database is busy.

    `missing` and `existing` are returned where MLflow says that the thing does not, or already does, exist. Raises
    TemporaryError when it stays busy; other errors of MLflow pass through.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and missing is not _RAISE:
                return missing  # type: ignore[no-any-return]
            if error.error_code == "RESOURCE_ALREADY_EXISTS" and existing is not _RAISE:
                return existing  # type: ignore[no-any-return]
            away = _says(error, _AWAY_WORDS)
            if not away and error.error_code not in _BUSY and not _says(error, _BUSY_WORDS):
                raise
            if away or attempt == _ATTEMPTS - 1:
                found = str(error).splitlines()[0][:200]
                raise TemporaryError("MLflow", found, "it stays busy or away", "Try again", delay_s=5.0) from error
            time.sleep(min(0.05 * 2**attempt, 2.0) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return any(word.lower() in str(error).lower() for word in words)


def _version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, int(found.version), found.source, dict(found.tags))


def _quieten() -> None:
    """No telemetry, no progress bars, no log lines below warnings, and never a pickle."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # about 30 s; its own 7 are four minutes
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
