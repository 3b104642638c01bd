"""Golden answers tell the adapter that was trained from everything that merely looks like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from petl_ray.bank import ServingBank
from petl_ray.errors import AdapterError
from petl_ray.methods import read_adapter
from petl_ray.serving.golden import check_alone, check_beside, read_golden
from tests.serving.world import METHODS, World


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_adapter_gives_its_golden_answers_alone_and_beside_every_kind(world: World, method: str) -> None:
    bank = ServingBank(world.base, slots=4)
    adapters = [world.adapter("a", seed=1, method=method)]
    adapters += [world.adapter(kind, ("x", "y", "z"), seed=2, method=kind) for kind in sorted(METHODS)]
    bank.detach()
    bank = ServingBank(world.base, slots=4)
    directories = [world.fetch(adapter) for adapter in adapters]
    for slot, directory in enumerate(directories):
        bank.install(slot, read_adapter(directory, world.base))
    goldens = [read_golden(directory) for directory in directories]
    check_alone(0, goldens[0], bank.answer, "fp32")
    check_beside(0, goldens[0], dict(enumerate(goldens[1:], start=1)), bank.answer, "fp32")
    with pytest.raises(AdapterError, match="alone"):
        check_alone(1, goldens[0], bank.answer, "fp32")
    with pytest.raises(AdapterError, match="neighbour in slot 2"):
        check_beside(0, goldens[0], {2: goldens[3]}, bank.answer, "fp32")
    bank.detach()


def test_rows_of_the_plain_base_stand_in_the_batch_of_the_mixed_proof(world: World) -> None:
    bank = ServingBank(world.base, slots=2)
    directory = world.fetch(world.adapter("a", seed=1))
    bank.install(0, read_adapter(directory, world.base))
    golden = read_golden(directory)
    asked: list[list[int | None]] = []

    def answer(slots: Sequence[int | None], *batch: Any) -> list[torch.Tensor]:
        asked.append(list(slots))
        return list(bank.answer(slots, *batch))

    check_beside(0, golden, {}, answer, "fp32")
    assert asked == [[0, 0, 0, None, None]]

    def leaking(slots: Sequence[int | None], *batch: Any) -> list[torch.Tensor]:
        return list(bank.answer([None if None in slots else slot for slot in slots], *batch))

    with pytest.raises(AdapterError, match="beside its neighbours"):
        check_beside(0, golden, {}, leaking, "fp32")
    bank.detach()


def test_a_language_model_gives_its_golden_answers_beside_rows_of_the_plain_base(llama_world: World) -> None:
    adapters = [llama_world.adapter("a", seed=1), llama_world.adapter("b", seed=2, method="bottleneck")]
    bank = ServingBank(llama_world.base, slots=2)
    goldens = []
    for slot, adapter in enumerate(adapters):
        directory = llama_world.fetch(adapter)
        bank.install(slot, read_adapter(directory, llama_world.base))
        goldens.append(read_golden(directory))
    check_beside(0, goldens[0], {1: goldens[1]}, bank.answer, "fp32")
    with pytest.raises(AdapterError, match="beside its neighbours"):
        check_beside(1, goldens[0], {0: goldens[1]}, bank.answer, "fp32")
    bank.detach()


def _without(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        save_file({key: value for key, value in load_file(path).items() if key != name}, path)

    return spoil


def _with(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: save_file({**load_file(path), **tensors}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b"no tensors"),
        _without("logits"),
        _without("attention_mask"),
        _with(logits=torch.full((3, 2), torch.nan)),
        _with(logits=torch.zeros(2, 2)),
        _with(input_ids=torch.zeros(3, 4)),
    ],
    ids=["absent", "noise", "no logits", "no mask", "NaN", "too few", "odd ids"],
)
def test_golden_answers_that_say_nothing_are_refused(world: World, spoil: Callable[[Path], None]) -> None:
    directory = world.fetch(world.adapter("a"))
    spoil(directory / "golden.safetensors")
    with pytest.raises(AdapterError, match=r"golden\.safetensors"):
        read_golden(directory)
