"""evaluate on real small bases: the figures are those of each adapter alone, whoever stands beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, precision_recall_fscore_support

from petl_ray.artifact import Adapter, Dataset, Report
from petl_ray.bank import Bank, Segment
from petl_ray.errors import AdapterError, DataError, PlanError, RunCancelled
from petl_ray.evaluation import EvalSpec, evaluate
from petl_ray.evaluation.answering import UNKNOWN_LABEL_LOSS
from petl_ray.methods import read_adapter
from petl_ray.models import BaseSpec, LoadedBase, load_base, resolve
from tests.bases import make_tiny_bert
from tests.evaluation.conftest import LABELS, make_adapter, make_dataset, some_rows
from tests.plainstep import PlainStep

ROWS = {"train": some_rows(40, 1), "validation": some_rows(20, 2), "test": some_rows(70, 3)}


def report_of(spec: EvalSpec, adapter: Adapter, dataset: Dataset, *rivals: Adapter, step: PlainStep) -> Report:
    outcome = evaluate(spec, adapter, dataset, *rivals, step=step)
    assert isinstance(outcome, Report)
    return outcome


def alone(step: PlainStep, loaded: LoadedBase, adapter: Adapter, rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """[rows, labels] probabilities, one row at a time through the training layout."""
    bank = Bank(loaded, slots=1)
    bank.load(0, read_adapter(step.fetch(adapter), loaded))
    chances = []
    with torch.no_grad():
        for row in rows:
            known = loaded.tokenizer(row["text"], truncation=True, max_length=32, return_tensors="pt")
            (logits,) = bank.forward([Segment(0, known["input_ids"], known["attention_mask"], {})])
            chances.append(logits[0].double().softmax(-1).numpy())
    bank.detach()
    return np.array(chances)


@pytest.fixture
def dataset(step: PlainStep) -> Dataset:
    return make_dataset(step, ROWS)


def test_the_figures_are_those_of_the_adapter_alone(step: PlainStep, bert: LoadedBase, dataset: Dataset) -> None:
    adapter = make_adapter(step, bert, seed=1)
    rivals = [make_adapter(step, bert, "head", seed=2), make_adapter(step, bert, "bottleneck", seed=3)]
    spec = EvalSpec(metric="macro_f1", roles=("head_only", "default"), resamples=300, batch_tokens=512)
    report = report_of(spec, adapter, dataset, *rivals, step=step)

    truth = [row["label"] for row in ROWS["test"]]
    chances = alone(step, bert, adapter, ROWS["test"])
    guess = chances.argmax(-1)
    expected = {
        "accuracy": accuracy_score(truth, guess),
        "macro_f1": f1_score(truth, guess, average="macro"),
        "matthews": matthews_corrcoef(truth, guess),
        "loss": log_loss(truth, chances, labels=[0, 1, 2]),
    }
    assert report.scores.keys() == expected.keys()
    for metric, value in expected.items():
        assert report.scores[metric].value == pytest.approx(value, abs=2e-6)
        assert report.scores[metric].low <= value + 1e-6
        assert report.scores[metric].high >= value - 1e-6
    for role, rival in zip(spec.roles, rivals, strict=True):
        other = f1_score(truth, alone(step, bert, rival, ROWS["test"]).argmax(-1), average="macro")
        assert report.rivals[role].value == pytest.approx(other, abs=1e-6)
        assert report.differences[role].value == pytest.approx(expected["macro_f1"] - other, abs=2e-6)
    assert (report.metric, report.mode, report.rows) == ("macro_f1", "max", 70)
    assert report.rival_digests == {"head_only": rivals[0].digest, "default": rivals[1].digest}


def test_the_majority_knows_only_how_frequent_labels_were_in_training(
    step: PlainStep, bert: LoadedBase, dataset: Dataset
) -> None:
    adapter = make_adapter(step, bert)
    counts = np.bincount([row["label"] for row in ROWS["train"]], minlength=3)
    truth = np.array([row["label"] for row in ROWS["test"]])
    by_accuracy = report_of(EvalSpec(resamples=200), adapter, dataset, step=step)
    assert by_accuracy.rivals["majority"].value == pytest.approx(float((truth == counts.argmax()).mean()), abs=1e-6)
    by_loss = report_of(EvalSpec(metric="loss", resamples=200), adapter, dataset, step=step)
    shares = (counts + 1) / (counts + 1).sum()
    assert by_loss.rivals["majority"].value == pytest.approx(float(-np.log(shares[truth]).mean()), abs=1e-6)
    assert by_loss.mode == "min"
    change = by_loss.scores["loss"].value - by_loss.rivals["majority"].value
    assert by_loss.differences["majority"].value == pytest.approx(change, abs=2e-6)


def test_equal_questions_give_equal_reports_however_rows_are_batched(
    step: PlainStep, bert: LoadedBase, dataset: Dataset, tmp_path: Path
) -> None:
    adapter, rival = make_adapter(step, bert, seed=1), make_adapter(step, bert, "head", seed=2)
    first, second = (
        report_of(
            EvalSpec(roles=("head_only",), resamples=300, batch_tokens=tokens), adapter, dataset, rival, step=step
        )
        for tokens in (64, 4096)
    )
    assert first.digest == second.digest
    assert first.file("report.json").sha256 == second.file("report.json").sha256


def test_the_report_tells_where_the_candidate_errs(step: PlainStep, bert: LoadedBase, dataset: Dataset) -> None:
    adapter = make_adapter(step, bert, seed=1)
    report = report_of(EvalSpec(resamples=200), adapter, dataset, step=step)
    body = json.loads((step.fetch(report) / "report.json").read_text())
    truth = np.array([row["label"] for row in ROWS["test"]])
    guess = alone(step, bert, adapter, ROWS["test"]).argmax(-1)
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=[0, 1, 2], zero_division=0)
    for index, line in enumerate(body["labels"]):
        assert line["label"] == LABELS[index]
        assert line["precision"] == pytest.approx(precision[index], abs=1e-6)
        assert line["recall"] == pytest.approx(recall[index], abs=1e-6)
        assert line["f1"] == pytest.approx(f1[index], abs=1e-6)
        assert line["support"] == support[index]
    cells = {(cell["label"], cell["prediction"]): cell["rows"] for cell in body["confusion"]}
    assert sum(cells.values()) == 70
    for (label, prediction), rows in cells.items():
        assert rows == int(((truth == LABELS.index(label)) & (guess == LABELS.index(prediction))).sum())
    assert body["scores"]["accuracy"] == report.scores["accuracy"].model_dump()


def test_the_predictions_are_kept_as_a_trace(step: PlainStep, bert: LoadedBase, dataset: Dataset) -> None:
    adapter, rival = make_adapter(step, bert, seed=1), make_adapter(step, bert, "head", seed=2)
    report = report_of(EvalSpec(roles=("head_only",), resamples=200), adapter, dataset, rival, step=step)
    assert [trace.path for trace in report.traces] == ["predictions.parquet"]
    table = pq.read_table(step.fetch(report) / "predictions.parquet").to_pydict()
    chances = alone(step, bert, adapter, ROWS["test"])
    assert table["id"] == [row["id"] for row in ROWS["test"]]
    assert table["label"] == [LABELS[row["label"]] for row in ROWS["test"]]
    assert table["candidate.prediction"] == [LABELS[guess] for guess in chances.argmax(-1)]
    assert np.allclose(table["candidate.probability"], chances.max(-1), atol=1e-5)
    assert {"head_only.prediction", "majority.prediction"} <= table.keys()


def test_a_rival_on_another_base_answers_beside_its_own(
    step: PlainStep, bert: LoadedBase, dataset: Dataset, tmp_path: Path
) -> None:
    elsewhere = make_tiny_bert(tmp_path / "other", hidden=32, seed=9)
    other = load_base(resolve(BaseSpec(source=str(elsewhere), precision="fp32")), "classification")
    adapter, champion = make_adapter(step, bert, seed=1), make_adapter(step, other, seed=2)
    report = report_of(EvalSpec(roles=("champion",), resamples=200), adapter, dataset, champion, step=step)
    truth = [row["label"] for row in ROWS["test"]]
    expected = accuracy_score(truth, alone(step, other, champion, ROWS["test"]).argmax(-1))
    assert report.rivals["champion"].value == pytest.approx(expected, abs=1e-6)


def test_a_champion_with_other_labels_is_compared_by_their_names(
    step: PlainStep, bert: LoadedBase, dataset: Dataset
) -> None:
    labels = ("refund", "bug", "greeting")  # knows no `praise`, and one that the dataset has not
    adapter, champion = make_adapter(step, bert, seed=1), make_adapter(step, bert, labels=labels, seed=5)
    spec = EvalSpec(roles=("champion",), resamples=200, metric="loss")
    report = report_of(spec, adapter, dataset, champion, step=step)
    table = pq.read_table(step.fetch(report) / "predictions.parquet").to_pydict()
    chances = alone(step, bert, champion, ROWS["test"])
    for row, guess, loss in zip(range(len(chances)), table["champion.prediction"], table["champion.loss"], strict=True):
        said = labels[int(chances[row].argmax())]
        assert guess == (said if said in LABELS else None)
        label = LABELS[ROWS["test"][row]["label"]]
        known = -np.log(chances[row][labels.index(label)]) if label in labels else UNKNOWN_LABEL_LOSS
        assert loss == pytest.approx(known, abs=1e-4)


def test_a_language_model_is_compared_with_its_base(step: PlainStep, llama: LoadedBase) -> None:
    rows = [
        {"id": str(number), "prompt": f"order {number} late", "completion": f"refund {number % 7}"}
        for number in range(25)
    ]
    dataset = make_dataset(step, {"train": rows[:5], "test": rows[5:]}, task_type="causal_lm", labels=())
    adapter = make_adapter(step, llama, labels=(), seed=1)
    spec = EvalSpec(metric="perplexity", resamples=200, batch_tokens=128)
    report = report_of(spec, adapter, dataset, step=step)
    assert report.rivals.keys() == {"base"}
    assert report.scores["perplexity"].value == pytest.approx(np.exp(report.scores["loss"].value), rel=1e-4)

    losses = []
    for row in rows[5:]:
        tokens = loaded_tokens(llama, row)
        with torch.no_grad():
            logs = llama.model(input_ids=tokens["all"][None]).logits[0].double().log_softmax(-1)
        wanted = tokens["completion"]
        places = torch.arange(len(tokens["all"]) - len(wanted) - 1, len(tokens["all"]) - 1)
        losses += (-logs[places, wanted]).tolist()
    assert report.rivals["base"].value == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-4)


def loaded_tokens(loaded: LoadedBase, row: dict[str, str]) -> dict[str, torch.Tensor]:
    prompt = loaded.tokenizer(row["prompt"])["input_ids"]
    completion = loaded.tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    completion = [*completion, loaded.tokenizer.eos_token_id]
    return {"all": torch.tensor([*prompt, *completion]), "completion": torch.tensor(completion)}


def test_progress_is_shown_and_a_cancelled_run_stops(step: PlainStep, bert: LoadedBase, dataset: Dataset) -> None:
    adapter = make_adapter(step, bert)
    report_of(EvalSpec(resamples=200), adapter, dataset, step=step)
    assert ("evaluate.rows", {"done": 70, "total": 70}) in step.events
    step.cancelled = True
    with pytest.raises(RunCancelled):
        evaluate(EvalSpec(resamples=200), adapter, dataset, step=step)


def test_questions_that_do_not_fit_are_refused(step: PlainStep, bert: LoadedBase, dataset: Dataset) -> None:
    adapter = make_adapter(step, bert)
    with pytest.raises(PlanError, match="0 names for 1 rivals"):
        evaluate(EvalSpec(), adapter, dataset, adapter, step=step)
    with pytest.raises(PlanError, match=r"evaluation\.metric: got 'perplexity'"):
        evaluate(EvalSpec(metric="perplexity"), adapter, dataset, step=step)
    with pytest.raises(DataError, match="got no rows"):
        evaluate(EvalSpec(), adapter, make_dataset(step, {"train": ROWS["train"], "test": []}), step=step)
    language = make_dataset(step, {"test": []}, task_type="causal_lm", labels=())
    with pytest.raises(AdapterError, match="emails is a causal_lm task"):
        evaluate(EvalSpec(metric="loss"), adapter, language, step=step)
    with pytest.raises(ValueError, match="reserved"):
        EvalSpec(roles=("majority",))
    with pytest.raises(ValueError, match="twice"):
        EvalSpec(roles=("default", "default"))


def test_a_report_of_the_validation_rows_is_of_these(step: PlainStep, bert: LoadedBase, dataset: Dataset) -> None:
    report = report_of(EvalSpec(split="validation", resamples=200), make_adapter(step, bert), dataset, step=step)
    assert report.rows == 20
