"""Checkpoints: what is written comes back bit for bit, and what is broken is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from petl_ray.errors import CorruptionError
from petl_ray.training.checkpoint import FACTS, TENSORS, part, prefixed, read_checkpoint, write_checkpoint


def test_tensors_and_facts_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"weights/a": torch.randn(3, 4), "first/a": torch.randn(4, 3).T, "n": torch.tensor([1, 2])}
    write_checkpoint(tmp_path / "c", tensors, {"step": 3, "best": None, "rate": 0.1})
    back, facts = read_checkpoint(tmp_path / "c")
    assert facts == {"step": 3, "best": None, "rate": 0.1}
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == sorted([FACTS, TENSORS])


def test_prefixes_part_what_they_joined() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    joined = prefixed({"x": a}, "weights") | prefixed({"x": b}, "best")
    assert part(joined, "weights") == {"x": a}
    assert part(joined, "best") == {"x": b}


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_torn_file_is_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, {"a": torch.ones(100)}, {"step": 1})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptionError):
        read_checkpoint(tmp_path)
