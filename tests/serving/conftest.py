"""Worlds to serve, one loaded base each for the whole run; every test has its own store and database."""

from __future__ import annotations

from pathlib import Path

import pytest

from petl_ray.models import LoadedBase
from tests.serving.world import World, make_world


@pytest.fixture(scope="session")
def bert_base(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return make_world(tmp_path_factory.mktemp("bert"), tiny_bert).base


@pytest.fixture(scope="session")
def llama_base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return make_world(tmp_path_factory.mktemp("llama"), tiny_llama, "causal_lm").base


@pytest.fixture
def world(tmp_path: Path, bert_base: LoadedBase) -> World:
    """Classification over a tiny BERT."""
    return World(tmp_path, bert_base)


@pytest.fixture
def llama_world(tmp_path: Path, llama_base: LoadedBase) -> World:
    """Causal language modelling over a tiny Llama."""
    return World(tmp_path, llama_base)
