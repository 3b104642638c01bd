"""The Kubernetes manifests cannot be applied here; what they name must at least exist."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from petl_ray.orchestration import load_placement
from petl_ray.orchestration.placement import check_capacity
from petl_ray.orchestration.verbs import VERBS
from petl_ray.plan import read_plan
from petl_ray.serving import ServeSpec
from petl_ray.verb import load

ROOT = Path(__file__).resolve().parents[1]


def manifest(name: str) -> dict[str, Any]:
    text = (ROOT / "cluster" / "kuberay" / name).read_text()
    assert "never applied" in text
    return dict(yaml.safe_load(text))


def test_the_job_runs_a_plan_and_a_placement_that_are_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = manifest("rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["petl-ray", "run"]
    plan = read_plan(Path(words[2]), [words[words.index("--set") + 1]])
    assert plan.serving is None
    assert load_placement(words[words.index("--cluster") + 1]).ray == "auto"
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def machines(group: dict[str, Any]) -> list[dict[str, float]]:
    """What each pod of a head or worker group brings into the cluster, as Ray names it."""
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    cores = group["rayStartParams"].get("num-cpus", limits["cpu"])
    return [{"CPU": float(cores), "GPU": float(limits.get("nvidia.com/gpu", 0))}] * group.get("replicas", 1)


@pytest.mark.parametrize("replicas", ["replicas", "minReplicas", "maxReplicas"])
def test_the_pods_of_the_job_have_what_its_placement_asks_for(replicas: str) -> None:
    job = manifest("rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    placement = load_placement(ROOT / words[words.index("--cluster") + 1])
    cluster = job["spec"]["rayClusterSpec"]
    there = machines(cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        there += machines({**group, "replicas": group[replicas]})
    for verb in VERBS:
        check_capacity(verb.name, placement.resources(verb.name, there), verb.drives_ray, there)
    assert placement.resources("train", there).packs == len(there) - 1, "every worker trains"


def test_the_service_names_an_application_that_exists_with_arguments_it_takes() -> None:
    service = manifest("rayservice.yaml")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    spec = ServeSpec.model_validate(application["args"])
    assert (spec.host, spec.port) == (config["http_options"]["host"], config["http_options"]["port"])
    assert load(application["import_path"])(application["args"]) is not None


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.yaml")), ids=lambda path: path.name)
def test_every_placement_that_is_shipped_is_read(path: Path) -> None:
    assert load_placement(path).name == path.stem


def test_the_image_installs_what_its_command_needs() -> None:
    text = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    assert "Not built by the project's own tests" in text
    for folder in ("petl_ray", "pipelines", "configs", "cluster", "examples"):
        assert f"COPY {folder} {folder}" in text
        assert (ROOT / folder).is_dir()
