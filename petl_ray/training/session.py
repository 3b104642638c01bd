"""A session: K slots over one resident base in this process. A search drives it through `petl_ray.verb.SlotSession`;
`train.py` is a session too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from petl_ray.bank import Bank
from petl_ray.bank.memory import (
    Gauge,
    activation_estimate,
    base_estimate,
    base_name,
    late_estimate,
    machine_here,
    state_estimate,
    takes,
)
from petl_ray.errors import CapacityError, NotFoundError, PlanError
from petl_ray.methods import AdapterCard, count_parameters
from petl_ray.models import LoadedBase, load_base, use_threads
from petl_ray.models.faults import is_out_of_memory
from petl_ray.models.positions import refuse_longer
from petl_ray.spec import Spec
from petl_ray.tasks.late import CHUNK_BYTES
from petl_ray.training.checkpoint import read_checkpoint, write_checkpoint
from petl_ray.training.failures import as_failure
from petl_ray.training.loop import is_nobodys, take_step
from petl_ray.training.memory import TokenBudget, slot_estimate, steps_of, too_long
from petl_ray.training.occupant import VALIDATION_TOKENS, Occupant
from petl_ray.training.peers import Peers
from petl_ray.training.prefixes import Prefixes
from petl_ray.training.rows import Rows, read_rows
from petl_ray.training.schedule import step_at
from petl_ray.training.sharing import Sharing
from petl_ray.training.spec import TrainSpec
from petl_ray.verb import SHARED_FIELDS, Turn

_TOKENS_KEPT = 4_000_000  # of tokenised rows, some 130 MB, beside those that somebody trains on


def open_session(
    template: Spec, slots: int, threads: int, *, grouped: bool | None = None, sharing: Sharing | None = None
) -> Session:
    """Load the base that `template` names once and open `slots` slots over it, on `threads` threads.

    `grouped` and `sharing` ask for other products and other passes than suit its device (see `Session`). Raises PlanError
    if `template` is no TrainSpec, and what loading raises (see `petl_ray.models.load_base`).
    """
    use_threads(threads)
    return Session(_training(template), slots, grouped=grouped, sharing=sharing)


class Session:
    """See `petl_ray.verb.SlotSession`; beside it what `train` needs: watching, adapter files, the resident base.

    `grouped` says whether slots of a kind are computed in one product (see `Bank`), `sharing` who shares a pass with whom;
    None: as suits the device that the base lies on.
    """

    def __init__(
        self, template: TrainSpec, slots: int, *, grouped: bool | None = None, sharing: Sharing | None = None
    ) -> None:
        self.loaded: LoadedBase = load_base(template.base, template.task_type)
        self.budget = TokenBudget()
        self._scoring = TokenBudget()
        self._template = template
        again = template.gradient_checkpointing
        self._bank = Bank(self.loaded, slots=slots, gradient_checkpointing=again, grouped=grouped)
        self._free = list(reversed(range(slots)))
        self._occupants: dict[str, Occupant] = {}
        self._aims: dict[str, int] = {}
        self._sharing = Sharing.of(self.loaded) if sharing is None else sharing
        self._prefixes = Prefixes(self._bank, self.loaded, self._sharing)
        self._watchers: dict[str, Callable[[Occupant], None]] = {}
        self._rows: dict[tuple[Path, int, str], Rows] = {}
        self._most = (0, 0)  # bytes of the slots' state, and slots, where they were most
        self._gauge = Gauge(self.loaded.device.type)

    def admit(
        self, key: str, spec: Spec, data: Path, checkpoint: Path | None = None, peers: Peers | None = None
    ) -> None:
        """Give `key` a free slot with the adapter that `spec` asks for, continued from `checkpoint` if there is one.

        `data` is a directory with a Dataset's files. Raises CapacityError without a free slot or memory for it,
        PlanError for another base than the session's and for rows longer than it has positions, DataError for rows that
        do not fit, CorruptionError for a foreign checkpoint.
        """
        spec = _training(spec)
        for name in SHARED_FIELDS:
            if getattr(spec, name) != getattr(self._template, name):
                raise PlanError(
                    f"{key}: {name}", "differs from the session's", "one session has one base", "Open another"
                )
        if key in self._occupants:
            raise PlanError(key, "it has a slot already", "keys are unique in a session", "Drop it first")
        refuse_longer(self.loaded.model, spec.max_length)
        if not self._free:
            raise CapacityError(f"slots for {key}", "all are taken", do="Drop one first or open more")
        rows = self._read(spec, data)
        slot = self._free.pop()
        try:
            occupant = Occupant(key, spec, rows, self._bank, slot, self.loaded, self._prefixes, peers)
            if checkpoint is not None:
                occupant.restore(*read_checkpoint(checkpoint))
        except BaseException as error:
            self._bank.free(slot)
            self._free.append(slot)
            if is_out_of_memory(error):
                raise CapacityError(
                    f"memory for {key}",
                    str(error)[:200],
                    "a slot's state does not fit",
                    "Lower ranks, or open fewer slots",
                ) from error
            raise
        self._occupants[key] = occupant
        trained = sum(one.trained_parameters for one in self._occupants.values())
        state = state_estimate(self.loaded, trained, self.loaded.device.type)
        self._most = max(self._most, (state, len(self._occupants)))

    def aim(self, key: str, share: float) -> None:
        """From the next turn on train `key` until that fraction (0…1] of its horizon."""
        self._aims[key] = self.target_step(key, share)

    def turn(self) -> Turn:
        """One step of everybody who was aimed, side by side; who has arrived is validated and aimed no longer.

        Keys of the metrics: `score` (the spec's metric), `loss` (mean over validation units, nats), `train_loss`,
        `steps`, `trained_share`; `{"diverged": 1.0}` for a slot whose loss or gradients are no longer finite.
        """
        live = [each for key in self._aims if not self._has_arrived(each := self.occupant(key))]
        failed = take_step(self._bank, live, self.budget, self._sharing, self._after_step)
        broken = {each.key: error for each, error in failed.items()}
        for key in broken:
            del self._aims[key]
        arrived = [key for key in self._aims if self._has_arrived(self.occupant(key))]
        for key in arrived:
            del self._aims[key]
        metrics: dict[str, dict[str, float]] = {}
        for key in arrived:
            try:
                metrics[key] = self._measured(self.occupant(key))
            except Exception as error:  # one that cannot be validated ends alone
                if is_nobodys(error, [self.occupant(key)]):
                    raise
                broken[key] = as_failure(self.occupant(key).rows.name, error)
        return Turn(metrics, broken)

    def advance(self, targets: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Turns until all of `targets` have arrived: their metrics. Raises the first failure among them."""
        for key, share in targets.items():
            self.aim(key, share)
        results: dict[str, dict[str, float]] = {}
        while len(results) < len(targets):
            turn = self.turn()
            for key, error in turn.failed.items():
                if key in targets:
                    for other in targets:
                        self._aims.pop(other, None)
                    raise error
            results |= turn.arrived
        return {key: results[key] for key in targets}

    def save(self, key: str, directory: Path) -> None:
        """Write everything that continues `key` later (weights, optimizer, position, best) as safetensors and JSON."""
        write_checkpoint(directory, *self.occupant(key).state())

    def drop(self, key: str) -> None:
        """Free the slot of `key`."""
        occupant = self.occupant(key)
        del self._occupants[key]
        self._watchers.pop(key, None)
        self._aims.pop(key, None)
        self._bank.free(occupant.slot)
        self._free.append(occupant.slot)

    def estimate(self, spec: Spec, labels: int) -> dict[str, float]:
        """Before anything is paid: `trained_share` (0…1) and `memory_bytes` of one slot for `spec` with so many labels."""
        spec = _training(spec)
        parameters = count_parameters(self.loaded.model, spec.method, labels)
        memory = slot_estimate(self.loaded, spec, labels)
        return {"trained_share": parameters / self.loaded.parameters, "memory_bytes": float(memory)}

    def footprint(self, spec: Spec, labels: int) -> dict[str, Any]:
        """What a pack is planned with; see `petl_ray.verb.SlotSession.footprint`."""
        spec = _training(spec)
        machine, base_bytes = machine_here(), base_estimate(self.loaded)
        parameters = count_parameters(self.loaded.model, spec.method, labels)
        steps = steps_of(self.loaded, spec)
        needs = takes(self.loaded, self.loaded.device.type, parameters, steps, self._sharing.shared)
        free = machine.free_bytes  # beside the base
        return {
            **self.estimate(spec, labels),
            "base": base_name(self.loaded.base),
            "device": machine.device,
            "base_bytes": base_bytes,
            **asdict(needs),
            "machine_bytes": machine.bytes,
            "free_bytes": None if free is None else free + base_bytes,
            "shared": self._sharing.shared,
        }

    def memory(self) -> dict[str, Any]:
        """What slots took here at their peak; see `petl_ray.verb.SlotSession.memory`."""
        state, slots = self._most
        if not slots:
            return {}
        again = self._template.gradient_checkpointing
        passes = [
            activation_estimate(self.loaded, tokens, length, again, late, depth)
            + (late_estimate(self.loaded, tokens, CHUNK_BYTES) if late else 0)
            for (late, depth, length), tokens in self.budget.longest.items()
        ]
        return {
            "base": base_name(self.loaded.base),
            "device": self.loaded.device.type,
            "slots": slots,
            "state_bytes": state,
            "estimated_bytes": state + max(passes, default=0),
            "measured_bytes": max(0, self._gauge.taken_bytes - self._prefixes.kept_bytes),  # those are no activations
        }

    def occupant(self, key: str) -> Occupant:
        """The occupant of that key; raises NotFoundError if there is none."""
        if key not in self._occupants:
            raise NotFoundError(key, "has no slot in this session", do=f"Known: {', '.join(self._occupants) or 'none'}")
        return self._occupants[key]

    def target_step(self, key: str, share: float) -> int:
        """The step at that share of the horizon of `key`; at least one."""
        return step_at(share, self.occupant(key).steps)

    def trained_share(self, key: str) -> float:
        """Trained parameters of `key`, head included, over those of the base."""
        return self.occupant(key).trained_parameters / self.loaded.parameters

    def watch(self, key: str, watcher: Callable[[Occupant], None]) -> None:
        """Call `watcher` after every step of `key`; a PetlRayError from it ends `key` alone, after a whole step."""
        self._watchers[key] = watcher

    def export(self, key: str, directory: Path) -> AdapterCard:
        """Write the adapter that is to be kept (weights, configuration, card) below `directory`; returns its card."""
        occupant = self.occupant(key)
        spec, rows = occupant.spec, occupant.rows
        occupant.wear_best()
        card = AdapterCard(
            task=rows.name,
            task_type=spec.task_type,
            labels=rows.labels,
            max_length=spec.max_length,
            base=self.loaded.digest,
            precision=spec.base.precision,
            quantization=spec.base.quantization,
            tokenizer=self.loaded.tokenizer_digest,
            method=spec.method,
            template=spec.template if spec.task_type == "causal_lm" else None,
        )
        self._bank.export(occupant.slot, directory, card)
        return card

    def close(self) -> None:
        """Take the slots off the base; the session is of no use afterwards."""
        self._bank.detach()

    def _read(self, spec: TrainSpec, data: Path) -> Rows:
        known = (data, spec.max_length, spec.template)
        rows = self._rows.pop(known, None)
        if rows is None:
            rows = read_rows(data, spec.task_type, self.loaded.tokenizer, spec.max_length, spec.template)
        self._rows[known] = rows  # the newest last
        self._forget_rows()
        return rows

    def _forget_rows(self) -> None:
        """Those that nobody has trained on for longest go where there are too many; the newest stay."""
        used = {id(each.rows) for each in self._occupants.values()}
        total = sum(each.tokens for each in self._rows.values())
        for known, rows in list(self._rows.items())[:-1]:
            if total > _TOKENS_KEPT and id(rows) not in used:
                total -= rows.tokens
                del self._rows[known]
                self._prefixes.forget(rows)

    def _has_arrived(self, occupant: Occupant) -> bool:
        return occupant.diverged or occupant.step >= self._aims[occupant.key]

    def _measured(self, occupant: Occupant) -> dict[str, float]:
        metrics = {"diverged": 1.0} if occupant.diverged else self._validated(occupant)
        if occupant.diverged:
            return metrics
        return {**metrics, "steps": float(occupant.step), "trained_share": self.trained_share(occupant.key)}

    def _validated(self, occupant: Occupant) -> dict[str, float]:
        """Validation in passes that are halved where memory runs out; CapacityError where one row does not fit."""
        while True:
            bounds = [each.tokens for each in (self.budget, self._scoring) if each.tokens is not None]
            tokens = min([VALIDATION_TOKENS[self.loaded.device.type], *bounds])
            try:
                return occupant.validate(tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if tokens <= min(row.length_tokens for row in occupant.rows.validation):
                    raise too_long(max(row.length_tokens for row in occupant.rows.validation), error) from error
                self._scoring.halve(tokens)

    def _after_step(self, occupant: Occupant) -> None:
        if watcher := self._watchers.get(occupant.key):
            watcher(occupant)


def _training(spec: Spec) -> TrainSpec:
    if not isinstance(spec, TrainSpec):
        raise PlanError("training", f"got a {type(spec).__name__}", "a session trains TrainSpecs", "Give one")
    return spec
