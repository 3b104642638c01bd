"""Loaded bases shared by the tests of the bank; each test proves that it left its base as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from petl_ray.models import BaseSpec, resolve
from petl_ray.models.loading import LoadedBase, load_base


def _load(source: Path | str, task_type: str, device: str = "cpu", **more: str) -> LoadedBase:
    spec = BaseSpec.model_validate({"source": str(source), "precision": "fp32", **more})
    return load_base(resolve(spec), task_type, device=device)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def _bert(tiny_bert: Path) -> LoadedBase:
    return _load(tiny_bert, "classification")


@pytest.fixture(scope="session")
def _llama(tiny_llama: Path) -> LoadedBase:
    return _load(tiny_llama, "causal_lm")


@pytest.fixture(scope="session")
def _llama_classifier(tiny_llama: Path) -> LoadedBase:
    return _load(tiny_llama, "classification")


@pytest.fixture(scope="session")
def _llama_nf4(tiny_llama: Path) -> LoadedBase:
    return _load(tiny_llama, "causal_lm", quantization="nf4")


@pytest.fixture(scope="session")
def _minilm(minilm: str) -> LoadedBase:
    return _load(minilm, "classification")


def _unchanged(loaded: LoadedBase) -> Iterator[LoadedBase]:
    before = loaded.weights_digest()
    yield loaded
    assert loaded.weights_digest() == before


@pytest.fixture
def bert(_bert: LoadedBase) -> Iterator[LoadedBase]:
    yield from _unchanged(_bert)


@pytest.fixture
def llama(_llama: LoadedBase) -> Iterator[LoadedBase]:
    yield from _unchanged(_llama)


@pytest.fixture
def llama_classifier(_llama_classifier: LoadedBase) -> Iterator[LoadedBase]:
    yield from _unchanged(_llama_classifier)


@pytest.fixture
def llama_nf4(_llama_nf4: LoadedBase) -> Iterator[LoadedBase]:
    yield from _unchanged(_llama_nf4)


@pytest.fixture
def minilm_base(_minilm: LoadedBase) -> Iterator[LoadedBase]:
    yield from _unchanged(_minilm)
