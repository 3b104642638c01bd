"""The data that ships with the project: it keeps its own rules, the rules can fail, and the data room loses no row."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from petl_ray.data.prepare import prepare
from petl_ray.data.spec import DataSpec
from petl_ray.fingerprint import sha256_file
from petl_ray.spec import Pinned
from tests.plainstep import PlainStep

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CLASSIFICATION = ("support_tickets", "review_sentiment", "request_urgency")
NAMES = (*CLASSIFICATION, "invoice_lines")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_data", EXAMPLES / "check_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_data"] = module
    spec.loader.exec_module(module)
    return module


def _rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLES / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_shipped_data_keeps_every_rule() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "check_data.py")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all rules hold\n")


def test_a_row_that_stands_nearly_twice_makes_the_script_fail(
    tmp_path: Path, check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "SPLITS", 1)
    data = Path(shutil.copytree(EXAMPLES / "data", tmp_path / "data"))
    with (data / "request_urgency.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": _rows("request_urgency")[0]["text"] + " Please.", "label": "high"}) + "\n")
    assert check.main(data) == 1
    assert "1 rules broken" in capsys.readouterr().out


def test_a_task_that_word_counts_solve_breaks_the_rule(check: ModuleType) -> None:
    rows = [{**row, "text": f"{row['text']} {row['label']}mark"} for row in _rows("request_urgency")]
    broken = " ".join(check.check_classification("request_urgency", rows).broken)
    assert "bag of words" in broken and "strongest token" in broken


def test_the_strongest_token_is_the_one_that_covers_most_of_its_label(check: ModuleType) -> None:
    texts = ["red car"] * 6 + ["red bike"] * 2 + ["blue bike"] * 8
    labels = ["a"] * 8 + ["b"] * 8
    assert check.giveaway(texts, labels) == (1.0, "red", "a", 1.0)
    assert check.giveaway(["one two"] * 10, ["a", "b"] * 5) == (0.0, "", "", 0.0)


def test_nearness_looks_at_word_sets_whatever_order_and_case(check: ModuleType) -> None:
    assert check.nearest(["The cat sat.", "a dog ran off", "sat the CAT"]) == (1.0, 0, 2)


@pytest.mark.parametrize("answer", ["2024-02-30 | 1.00 EUR", "2024-02-03 | 1,00 EUR", "2024-02-03 | 01.00 EUR", "soon"])
def test_a_completion_must_be_a_real_date_and_an_amount(check: ModuleType, answer: str) -> None:
    rows = [{"prompt": "x", "completion": answer}, {"prompt": "y", "completion": "2024-02-29 | 1.00 EUR"}]
    assert any("no date and amount: 1" in line for line in check.check_completion("invoice_lines", rows).broken)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_sorted_and_have_two_clean_fields(name: str) -> None:
    rows = _rows(name)
    fields = ("text", "label") if name in CLASSIFICATION else ("prompt", "completion")
    assert all(tuple(row) == fields for row in rows)
    assert all(value == value.strip() != "" for row in rows for value in row.values())
    order = [(row["label"], row["text"]) if "label" in row else (row["prompt"],) for row in rows]
    assert order == sorted(order)


@pytest.mark.parametrize("name", NAMES)
def test_the_data_room_keeps_every_row(name: str, step: PlainStep) -> None:
    path = EXAMPLES / "data" / f"{name}.jsonl"
    spec = DataSpec(
        task=name.replace("_", "-"),
        task_type="classification" if name in CLASSIFICATION else "causal_lm",
        train=Pinned(uri=str(path), digest=sha256_file(path)),
    )
    dataset = prepare(spec, step=step)
    assert sum(dataset.rows.values()) == len(_rows(name))
    assert dataset.labels == tuple(sorted({row["label"] for row in _rows(name) if "label" in row}))


@pytest.mark.parametrize("name", NAMES)
def test_the_data_card_states_the_number_of_rows(name: str) -> None:
    card = (EXAMPLES / "data" / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in card.splitlines() if line.startswith(f"| `{name}.jsonl` |"))
    assert f"| {len(_rows(name))} |" in line
