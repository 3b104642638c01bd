"""What a registered version consists of: the adapter's files, a manifest, a model card and a door for MLflow's pyfunc.

    adapter/…        the adapter's own files, byte for byte
    manifest.json    whose adapter this is, what it was made from, and the sha256 of every other file
    README.md        the model card, for people
    MLmodel          names `petl_ray.registry.pyfunc` as loader, so that MLflow can load it without any pickle

No base weights, no time, no host: equal adapters, reports and lineages are equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from petl_ray.artifact import Adapter, Report
from petl_ray.errors import AdapterError, ConflictError
from petl_ray.fingerprint import sha256_file
from petl_ray.registry.card import model_card
from petl_ray.registry.spec import RegistrySpec

MANIFEST = "manifest.json"
CARD = "README.md"


def write_package(
    directory: Path, fetched: Path, spec: RegistrySpec, adapter: Adapter, report: Report, lineage: Mapping[str, str]
) -> str:
    """Fill `directory` from the adapter's `fetched` files; returns the sha256 (hex) of its manifest.

    Raises ConflictError if the report is about another adapter.
    """
    if report.adapter_digest != adapter.digest:
        raise ConflictError(
            f"registry.{adapter.task}",
            f"the report is about adapter {report.adapter_digest[:12]}, not {adapter.digest[:12]}",
            "a version is registered with what was measured of it",
            "Evaluate this adapter",
        )
    for entry in adapter.files:
        target = directory / "adapter" / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetched / entry.path, target)
    (directory / CARD).write_text(model_card(spec, adapter, report, lineage), encoding="utf-8")
    (directory / "MLmodel").write_text(yaml.safe_dump(_mlmodel(adapter), sort_keys=True), encoding="utf-8")
    manifest = _manifest(directory, adapter, report, lineage)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return sha256_file(directory / MANIFEST)


def read_adapter(manifest: Path) -> Adapter:
    """The Adapter that a manifest names; its files are not looked at. Raises AdapterError for anything else."""
    return _read(manifest)[0]


def verified_adapter(directory: Path) -> Adapter:
    """The Adapter of a whole package, every file checked against its sha256.

    Raises AdapterError if the manifest cannot be read, or a file is missing or changed.
    """
    adapter, listed = _read(directory / MANIFEST)
    listed |= {f"adapter/{entry.path}": entry.sha256 for entry in adapter.files}
    for path, digest in listed.items():
        file = directory / path
        if not file.resolve().is_relative_to(directory.resolve()) or not file.is_file() or sha256_file(file) != digest:
            raise AdapterError(str(file), "missing or changed", "the manifest says otherwise", "Register it anew")
    return adapter


def _read(manifest: Path) -> tuple[Adapter, dict[str, str]]:
    try:
        read = json.loads(manifest.read_text(encoding="utf-8"))
        adapter = Adapter.model_validate(read["adapter"])
        return adapter, {str(entry["path"]): str(entry["sha256"]) for entry in read["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            str(manifest), str(error), "no manifest of a release", "Register the adapter anew"
        ) from error


def _manifest(directory: Path, adapter: Adapter, report: Report, lineage: Mapping[str, str]) -> dict[str, Any]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        "format": 1,
        "task": adapter.task,
        "adapter": adapter.model_dump(mode="json", exclude={"about", "traces"}),
        "adapter_digest": adapter.digest,
        "base_digest": adapter.base.digest,
        "dataset_digest": report.dataset_digest,
        "report_digest": report.digest,
        "lineage": dict(lineage),
        "files": [
            {
                "path": path.relative_to(directory).as_posix(),
                "sha256": sha256_file(path),
                "size_bytes": path.stat().st_size,
            }
            for path in files
        ],
    }


def _mlmodel(adapter: Adapter) -> dict[str, Any]:
    return {
        "flavors": {"python_function": {"loader_module": "petl_ray.registry.pyfunc", "data": "."}},
        "metadata": {"adapter_digest": adapter.digest, "base_digest": adapter.base.digest, "task": adapter.task},
    }
