"""A registered version through MLflow's own door: the same answers as the bank, no pickle, no changed file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from petl_ray.artifact import Adapter
from petl_ray.bank import ServingBank
from petl_ray.errors import AdapterError
from petl_ray.methods import read_adapter
from petl_ray.models import BaseSpec, LoadedBase, load_base, resolve
from petl_ray.registry import RegistrySpec, register
from tests.evaluation.conftest import LABELS, make_adapter
from tests.plainstep import PlainStep
from tests.registry.conftest import make_report

TEXTS = ["refund my order please", "love the app", "crash again and again"] * 13


@pytest.fixture
def bert(tiny_bert: Path) -> LoadedBase:
    return load_base(resolve(BaseSpec(source=str(tiny_bert), precision="fp32")), "classification")


@pytest.fixture
def registered(
    bert: LoadedBase, world: Callable[[str], PlainStep], tracking: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Adapter]:
    """An adapter as version 1 of `petl-ray.emails` of the MLflow that is in force."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, tracking)  # MLflow writes what is set below into the environment: it must not stay
    import mlflow

    step = world("train")
    adapter = make_adapter(step, bert, seed=1)
    register(RegistrySpec(), adapter, make_report(adapter), step=world("register"))
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(tracking)
    yield adapter
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def test_a_registered_version_loads_without_pickle_and_answers_as_the_bank(
    registered: Adapter, bert: LoadedBase, world: Callable[[str], PlainStep]
) -> None:
    import mlflow

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    model = mlflow.pyfunc.load_model("models:/petl-ray.emails/1")
    answers = model.predict(TEXTS)
    assert model.predict(pd.DataFrame({"text": TEXTS})) == answers
    assert model.metadata.metadata["adapter_digest"] == registered.digest

    bank = ServingBank(bert, slots=1)
    bank.install(0, read_adapter(world("look").fetch(registered), bert))
    for text, answer in zip(TEXTS[:3], answers, strict=False):
        known = bert.tokenizer(text, return_tensors="pt")
        (logits,) = bank.answer([0], known["input_ids"], known["attention_mask"])
        assert answer["label"] == LABELS[int(logits.argmax())]
        assert answer["probability"] == pytest.approx(float(torch.softmax(logits, -1).max()), abs=1e-5)
    bank.detach()


def test_a_version_with_a_changed_file_does_not_load(registered: Adapter, home: Path) -> None:
    import mlflow

    (weights,) = (home / "mlartifacts").rglob("adapter_model.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    with pytest.raises(AdapterError, match="missing or changed"):
        mlflow.pyfunc.load_model("models:/petl-ray.emails/1")


def test_what_is_no_text_is_refused(registered: Adapter) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/petl-ray.emails/1")
    with pytest.raises(ValueError, match="a row without text"):
        model.predict(pd.DataFrame({"words": ["refund"]}))
