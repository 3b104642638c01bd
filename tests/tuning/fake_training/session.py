"""Slots whose learning curve is a formula, stepped a hundred times a horizon with a state that must not be lost.

The state is a hash chain over (spec so far, rows, step), so a checkpoint that is lost, mixed up or taken twice changes
every score after it. A learning rate of 1 or more diverges; rank 666 is refused at admission; rank 999 breaks as a bug would.
`log` of a spec names a file that every rung trained is written to, with the steps it began and ended at. `spoils` names
one that the first process writes its id to: every turn in that process breaks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from petl_ray.errors import AdapterError, CapacityError, CorruptionError, PetlRayError
from petl_ray.fingerprint import sha256_of
from petl_ray.spec import Spec
from petl_ray.verb import Turn
from tests.tuning.fake_training.spec import Lora, MiniSpec

HORIZON = 100


@dataclass
class Slot:
    spec: MiniSpec
    rows: str
    step: int = 0
    chain: str = ""


def _is_spoilt(mark: Path) -> bool:
    """Whether this process is the one that was spoilt for good: the first that asked."""
    if not mark.exists():
        mark.write_text(str(os.getpid()))
    return mark.read_text() == str(os.getpid())


class MiniSession:
    def __init__(self, slots: int) -> None:
        self._count, self._slots = slots, dict[str, Slot]()
        self._aims: dict[str, float] = {}

    def admit(self, key: str, spec: Spec, data: Path, checkpoint: Path | None = None) -> None:
        mini = cast("MiniSpec", spec)
        assert len(self._slots) < self._count, "no free slot"
        assert not (data / "test.jsonl").exists(), "test rows must not reach a search"
        if isinstance(mini.method, Lora) and mini.method.rank == 666:
            raise AdapterError("method.rank", "got 666", "it does not fit")
        if isinstance(mini.method, Lora) and mini.method.rank == 999:
            raise ZeroDivisionError("a bug")
        rows = hashlib.sha256((data / "train.jsonl").read_bytes()).hexdigest()
        slot = Slot(mini, rows)
        if checkpoint is not None:
            state = json.loads((checkpoint / "deep" / "state.json").read_text())
            if state["spec"] != sha256_of(mini.begun(state["step"], HORIZON)):
                raise CorruptionError(f"checkpoint of {key}", "a foreign question")
            slot.step, slot.chain = state["step"], state["chain"]
        self._slots[key] = slot

    def aim(self, key: str, share: float) -> None:
        self._aims[key] = share

    def turn(self) -> Turn:
        for key in self._aims:
            if (spoils := self._slots[key].spec.spoils) and _is_spoilt(Path(spoils)):
                raise RuntimeError("CUDA error: unspecified launch failure")
        aims, self._aims = self._aims, {}
        full: dict[str, PetlRayError] = {
            key: CapacityError("memory", "one row does not fit") for key in aims if self._slots[key].spec.too_long
        }
        arrived = {key: self._advance(self._slots[key], aims[key], key) for key in aims if key not in full}
        return Turn(arrived, full)

    def save(self, key: str, directory: Path) -> None:
        slot = self._slots[key]
        (directory / "deep").mkdir()
        state = {"spec": sha256_of(slot.spec.begun(slot.step, HORIZON)), "step": slot.step, "chain": slot.chain}
        (directory / "deep" / "state.json").write_text(json.dumps(state))

    def drop(self, key: str) -> None:
        del self._slots[key]

    def estimate(self, spec: Spec, labels: int) -> dict[str, float]:
        method: Any = cast("MiniSpec", spec).method
        size = method.rank if isinstance(method, Lora) else method.size
        return {"trained_share": size / 1000, "memory_bytes": float(size * 1024)}

    def footprint(self, spec: Spec, labels: int) -> dict[str, Any]:
        base = cast("MiniSpec", spec).base
        return {
            **self.estimate(spec, labels),
            "base": base,
            "device": "cpu",
            "base_bytes": {"huge": 10**12, "big": 6 * 10**9, "half": 3 * 10**9}.get(base.partition("-")[0], 10**6),
            "slot_bytes": self.estimate(spec, labels)["memory_bytes"],
            "pass_bytes": 0,
            "state_bytes": self.estimate(spec, labels)["memory_bytes"],
            "row_bytes": 0,
            "kept_bytes": 0,
            "machine_bytes": 10**10,
            "free_bytes": None,
            "shared": True,
        }

    def memory(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self._slots.clear()

    def _advance(self, slot: Slot, target: float, key: str) -> dict[str, float]:
        began, goal = slot.step, round(target * HORIZON)
        assert slot.step < goal, f"{key} stands at {slot.step} already"
        while slot.step < goal:
            slot.step += 1
            name = sha256_of(slot.spec.begun(slot.step, HORIZON))
            slot.chain = hashlib.sha256(f"{slot.chain}{name}{slot.rows}{slot.step}".encode()).hexdigest()
        time.sleep(slot.spec.pause_s * target)
        if slot.spec.log:
            with Path(slot.spec.log).open("a") as stream:
                stream.write(f"{key} {began} {goal}\n")
        if slot.spec.learning_rate >= 1:
            return {"diverged": 1.0}
        noise = int(slot.chain[:8], 16) / 16**8 / 50
        height = 1 - 0.1 * abs(math.log10(slot.spec.begun(goal, HORIZON).rate()) + 2.5) - noise
        score = height * (1 - math.exp(-4 * target))
        loss = slot.spec.metric == "loss"
        return {
            "score": 1 - score if loss else score,
            "loss": 1 - score,
            "steps": float(slot.step),
            "trained_share": 0.01,
        }


def open_session(spec: Spec, slots: int, threads: int) -> MiniSession:
    return MiniSession(slots)
