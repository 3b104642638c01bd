"""Registering in a real MLflow: one version per adapter, with files, card and lineage, and never a pickle."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from petl_ray.artifact import Adapter, Release
from petl_ray.errors import AdapterError, ConflictError
from petl_ray.fingerprint import sha256_file
from petl_ray.registry import RegistrySpec, register
from petl_ray.registry.lineage import lineage_in
from petl_ray.registry.package import read_adapter, verified_adapter
from petl_ray.registry.tracking import ADAPTER_TAG, Tracking
from tests.plainstep import PlainStep
from tests.registry.conftest import ASKED_BY, fresh_postgres, make_adapter, make_report, make_trial

World = Callable[[str], PlainStep]
SPEC = RegistrySpec(data_license="CC-BY-4.0")


def registered(world: World, name: str, adapter: Adapter) -> Release:
    release = register(SPEC, adapter, make_report(adapter), step=world(name))
    assert isinstance(release, Release)
    return release


def test_an_adapter_becomes_a_version_with_its_files_and_facts(world: World, tracking: str, tmp_path: Path) -> None:
    adapter = make_adapter(world("train"))
    release = registered(world, "register", adapter)
    assert (release.task, release.version, release.status) == ("emails", 1, "registered")
    mlflow = Tracking(tracking)
    version = mlflow.version("petl-ray.emails", 1)
    assert version is not None
    assert version.tags[ADAPTER_TAG] == adapter.digest
    assert version.tags["petl_ray.base"] == adapter.base.digest
    assert version.tags["petl_ray.accuracy"] == "0.9"
    assert version.tags["petl_ray.method"] == "lora"
    package = mlflow.download(version, "", tmp_path / "downloaded")
    names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file())
    assert names == [
        "MLmodel", "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "manifest.json",
    ]  # fmt: skip
    assert verified_adapter(package) == adapter.model_copy(update={"about": {}})
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["lineage"] == release.about["lineage"]
    assert manifest["adapter_digest"] == adapter.digest
    assert version.source.endswith(sha256_file(package / "manifest.json"))


def test_the_files_lie_below_the_home(world: World, home: Path) -> None:
    registered(world, "register", make_adapter(world("train")))
    assert len(list((home / "mlartifacts").rglob("manifest.json"))) == 1


def test_the_same_adapter_again_is_the_same_version(world: World, tracking: str) -> None:
    adapter = make_adapter(world("train"))
    first = registered(world, "register", adapter)
    again = registered(world, "register again", adapter.model_copy(update={"about": {"seconds": 99}}))
    other = registered(world, "register other", make_adapter(world("train"), seed=1))
    back = registered(world, "register back", adapter)
    assert [first.version, again.version, other.version, back.version] == [1, 1, 2, 1]
    assert Tracking(tracking).version("petl-ray.emails", 3) is None


def test_tasks_have_models_of_their_own(world: World) -> None:
    emails = registered(world, "a", make_adapter(world("train"), "emails"))
    reviews = registered(world, "b", make_adapter(world("train"), "reviews"))
    assert (emails.version, reviews.version) == (1, 1)
    assert (emails.about["model"], reviews.about["model"]) == ("petl-ray.emails", "petl-ray.reviews")


def test_the_package_of_equal_questions_is_equal_bytes(world: World) -> None:
    adapter = make_adapter(world("train"))
    assert registered(world, "a", adapter).traces == registered(world, "b", adapter).traces


def test_a_version_says_which_run_of_which_plan_made_it_from_what(world: World, tracking: str) -> None:
    adapter = make_adapter(world("train"))
    report, trial = make_report(adapter), make_trial()
    step = world("register")
    release = register(SPEC, adapter, report, trial, step=step)
    lineage = release.about["lineage"]
    code = lineage.pop("code")
    assert lineage == {
        "run": "run-1",
        "plan": ASKED_BY["plan"],
        "dataset": report.dataset_digest,
        "base": adapter.base.digest,
        "report": report.digest,
        "trial": trial.digest,
        "trial_number": "4",
        "overrides": '{"learning_rate":0.003,"method.rank":16}',
        "verbs": "prepare 1, train 2",
    }
    assert {"petl-ray", "torch", "transformers", "ray"} <= {part.split()[0] for part in code.split(", ")}
    version = Tracking(tracking).version("petl-ray.emails", 1)
    assert version is not None
    assert lineage_in(version.tags) == {**lineage, "code": code}
    card = (step.fetch(release) / "release/README.md").read_text()
    assert all(value in card for value in (*lineage.values(), code))
    assert "trial" not in registered(world, "register other", make_adapter(world("train"), seed=1)).about["lineage"]


def test_another_run_that_registers_the_same_adapter_tells_its_own_lineage_and_has_the_same_release(
    world: World, tracking: str
) -> None:
    adapter = make_adapter(world("train"))
    first = registered(world, "register", adapter)
    later = world("register again")
    later.services = {**later.services, "run": "run-2", "plan": "e" * 64}
    second = register(SPEC, adapter, make_report(adapter), make_trial(), step=later)
    assert second.digest == first.digest
    assert (second.about["lineage"]["run"], second.about["lineage"]["plan"]) == ("run-2", "e" * 64)
    version = Tracking(tracking).version("petl-ray.emails", 1)
    assert version is not None
    assert lineage_in(version.tags) == first.about["lineage"]


def test_threads_that_register_one_adapter_at_once_get_one_version(world: World, tracking: str) -> None:
    adapter = make_adapter(world("train"))
    world("train").fetch(adapter)
    releases: list[Release] = []
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            releases.append(registered(world, name, adapter))
        except BaseException as error:  # noqa: BLE001 - whatever a thread raises must fail the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(releases) == 4
    assert len({release.version for release in releases}) == 1
    found = Tracking(tracking).find("petl-ray.emails", adapter.digest)
    assert found is not None
    assert found.version == releases[0].version


def test_a_report_about_another_adapter_is_refused(world: World, home: Path) -> None:
    adapter, other = make_adapter(world("train")), make_adapter(world("train"), seed=1)
    with pytest.raises(ConflictError, match="the report is about adapter"):
        register(SPEC, adapter, make_report(other), step=world("register"))
    assert not (home / "mlartifacts").exists()


def test_the_card_says_what_was_measured(world: World) -> None:
    adapter = make_adapter(world("train"))
    step = world("register")
    card = (step.fetch(register(SPEC, adapter, make_report(adapter), step=step)) / "release/README.md").read_text()
    assert "0.9000 [0.8800, 0.9200] at 95 %" in card
    assert "| head\\_only" in card or "| head_only |" in card
    assert "1.00% of the base's 100,000" in card
    assert "CC-BY-4.0" in card
    assert adapter.base.digest in card
    assert "bug, refund, praise" in card


def test_a_changed_file_of_a_package_is_found(world: World, home: Path) -> None:
    registered(world, "register", make_adapter(world("train")))
    (manifest,) = (home / "mlartifacts").rglob("manifest.json")
    weights = manifest.parent / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"!")
    with pytest.raises(AdapterError, match="missing or changed"):
        verified_adapter(manifest.parent)
    manifest.write_text("{}")
    with pytest.raises(AdapterError, match="no manifest of a release"):
        read_adapter(manifest)


def test_a_manifest_cannot_point_outside_its_package(world: World, home: Path) -> None:
    registered(world, "register", make_adapter(world("train")))
    (path,) = (home / "mlartifacts").rglob("manifest.json")
    manifest = json.loads(path.read_text())
    (path.parent.parent / "outside").write_text("secret")
    manifest["files"].append({"path": "../outside", "sha256": sha256_file(path.parent.parent / "outside")})
    path.write_text(json.dumps(manifest))
    with pytest.raises(AdapterError):
        verified_adapter(path.parent)


def test_the_room_is_opened_without_loading_mlflow_or_torch() -> None:
    code = (
        "import sys, petl_ray.registry, petl_ray.evaluation, petl_ray.registry.promotions; "
        "print([name for name in ('mlflow', 'torch', 'ray', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_registering_says_nothing_to_the_terminal(world: World, tmp_path: Path) -> None:
    """In a process of its own, an MLflow database that is just being made included."""
    code = (
        "import sys; from pathlib import Path\n"
        "from petl_ray.registry import RegistrySpec, register\n"
        "from tests.plainstep import PlainStep\n"
        "from tests.registry.conftest import fresh_postgres, make_adapter, make_report\n"
        "root = Path(sys.argv[1]); services = {'tracking': f'sqlite:///{root}/new.db', 'home': str(root)}\n"
        "step = PlainStep(root, services=services); adapter = make_adapter(step)\n"
        "assert register(RegistrySpec(), adapter, make_report(adapter), step=step).version == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_REGISTRANT = """
import sys, threading, time
from pathlib import Path
from petl_ray.registry import RegistrySpec, register
from tests.plainstep import PlainStep
from tests.registry.conftest import fresh_postgres, make_adapter, make_report

tracking, root, start = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
root.mkdir()
time.sleep(max(0.0, start - time.time()))

def work(task):
    step = PlainStep(root / task, services={"tracking": tracking, "home": str(root)})
    adapter = make_adapter(step, task)
    done.append(register(RegistrySpec(), adapter, make_report(adapter), step=step).version)

done = []
threads = [threading.Thread(target=work, args=(f"task-{number}",)) for number in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert done == [1, 1, 1], done
"""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def test_processes_and_threads_may_open_a_new_mlflow_at_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two processes of three threads each meet an empty database and register the same three adapters."""
    if kind == "sqlite":
        tracking = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        tracking = fresh_postgres(request.getfixturevalue("postgres_url"))
    start = str(time.time() + 2)
    commands = [[sys.executable, "-c", _REGISTRANT, tracking, str(tmp_path / name), start] for name in ("a", "b")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
