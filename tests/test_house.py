"""The laws of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import petl_ray
from petl_ray.verb import Verb

HOUSE = Path(petl_ray.__file__).parent
ROOT = HOUSE.parent
MODULES = sorted([*HOUSE.rglob("*.py"), *(ROOT / "pipelines").glob("*.py")])
ROOMS = ("data", "tuning", "training", "evaluation", "registry", "serving")
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "core", "manager", "handler", "managers", "handlers"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_opens_with_its_plaque_and_is_no_longer_than_400_lines(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{_name(path)} is too full for one room"
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{_name(path)} does not say what it is"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [_name(path) for path in MODULES if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES]


def test_only_files_called_on_ray_and_the_upper_floors_import_ray() -> None:
    upper = {"orchestration", "scheduling", "cli"}
    for path in MODULES:
        if path.name == "on_ray.py" or upper & set(path.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.split(".")[0] == "ray"], f"{_name(path)} imports ray"


def test_nothing_of_ours_is_pickled() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "cloudpickle", "dill", "shelve"}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in {"pickle", "cloudpickle", "dill", "shelve"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "id", "")
                assert (owner, node.func.attr) not in {("torch", "load"), ("torch", "save")}, path


def test_threads_are_set_in_one_place() -> None:
    setting = [_name(path) for path in MODULES if "torch.set_num_threads(" in path.read_text()]
    assert len(setting) == 1, setting


def test_catching_everything_carries_its_reason() -> None:
    for path in MODULES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip().startswith("except Exception"):
                assert "  # " in line, f"{_name(path)}:{number} does not say why it catches everything"


def test_nothing_that_could_run_code_is_read_back() -> None:
    """Weights leave a process as safetensors and JSON; nothing else that could run code is read back."""
    for path in MODULES:
        text = path.read_text()
        assert "weights_only=False" not in text, _name(path)
        assert "yaml.unsafe_load" not in text and "yaml.Loader" not in text, _name(path)


def test_tests_mirror_the_package() -> None:
    rooms = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").is_file()}
    there = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= there, f"no tests for {sorted(rooms - there)}"
    assert there - rooms <= {"chaos", "browser", "pipelines", "benchmarks"}, (
        f"tests of nothing: {sorted(there - rooms)}"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_its_verb_and_its_spec_at_its_door(room: str) -> None:
    door = importlib.import_module(f"petl_ray.{room}")
    verbs = [name for name in door.__all__ if isinstance(getattr(door, name), Verb)]
    assert verbs, f"petl_ray.{room} exports no verb"
    assert [name for name in door.__all__ if name.endswith("Spec")], f"petl_ray.{room} exports no Spec"
    for name in verbs:
        verb: Verb = getattr(door, name)
        module, _, function = verb.function.partition(":")
        assert module.startswith(f"petl_ray.{room}."), f"{name} lives in another room"
        assert callable(getattr(importlib.import_module(module), function))


def test_a_verb_keeps_its_name_when_its_module_is_loaded() -> None:
    for room in ROOMS:
        door = importlib.import_module(f"petl_ray.{room}")
        for name in door.__all__:
            if isinstance(verb := getattr(door, name), Verb):
                importlib.import_module(verb.function.partition(":")[0])
                assert getattr(door, name) is verb


def test_the_doors_are_light() -> None:
    heavy = {"torch", "ray", "mlflow", "transformers", "peft", "datasets", "bitsandbytes"}
    doors = [f"petl_ray.{room}" for room in ROOMS] + [f"petl_ray.{room}.spec" for room in ROOMS]
    code = f"import sys, {', '.join(doors)}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_floors_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
