"""Where configurations come from: optuna's samplers by ask and tell, or every point of a grid.

A sampler is deterministic: the same seed and the same asks and tells in the same order give the same configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Protocol, cast

from petl_ray.spec import Json
from petl_ray.tuning.domains import Choice, Domain, Integer, LogInt, LogUniform, QUniform, listed
from petl_ray.tuning.rules import Mode
from petl_ray.tuning.spec import SearchSpec

Overrides = dict[str, Json]


class Sampler(Protocol):
    """Asked for configurations by number, told how each one ended."""

    def ask(self, number: int) -> Overrides | None:
        """Overrides for trial `number`; None when there are no more."""

    def replace(self, number: int, overrides: Overrides) -> None:
        """Trial `number` runs with `overrides` (from a record), whatever was asked."""

    def forget(self, number: int) -> None:
        """What was asked for `number` is a configuration that runs already; nothing is to be learned from it."""

    def tell(self, number: int, scores: Mapping[float, float], finished: bool) -> None:
        """Scores by share of the horizon, higher shares later; no scores: as bad as can be."""


class Grid:
    """Every combination of countable domains, the last path turning fastest."""

    def __init__(self, space: Mapping[str, Domain]) -> None:
        self._paths = list(space)
        self._points: Iterator[tuple[Json, ...]] = product(*(listed(domain) or [] for domain in space.values()))

    def ask(self, number: int) -> Overrides | None:
        point = next(self._points, None)
        return None if point is None else dict(zip(self._paths, point, strict=True))

    def replace(self, number: int, overrides: Overrides) -> None: ...

    def forget(self, number: int) -> None: ...

    def tell(self, number: int, scores: Mapping[float, float], finished: bool) -> None: ...


class Optuna:
    """An in-memory optuna study: TPE after `startup_trials` random ones, or random alone.

    What was stopped is told as pruned with the scores of its rungs, so that TPE ranks it by how far it came.
    """

    def __init__(self, spec: SearchSpec, mode: Mode) -> None:
        import optuna  # only the driver samples; trial and pack processes never pay for this import

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._space = spec.space
        self._distributions = {path: _distribution(domain) for path, domain in spec.space.items()}
        samplers = optuna.samplers
        if spec.algorithm == "random":
            sampler: Any = samplers.RandomSampler(seed=spec.seed)
        else:  # the constant liar keeps the configurations of one generation apart
            sampler = samplers.TPESampler(seed=spec.seed, n_startup_trials=spec.startup_trials, constant_liar=True)
        self._study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
        self._asked: dict[int, Any] = {}
        self._given: dict[int, Overrides] = {}

    def ask(self, number: int) -> Overrides | None:
        trial = self._study.ask(self._distributions)
        self._asked[number] = trial
        return {path: _value(domain, trial.params[path]) for path, domain in self._space.items()}

    def replace(self, number: int, overrides: Overrides) -> None:
        self._given[number] = overrides

    def forget(self, number: int) -> None:
        self._study.tell(self._asked.pop(number), state=self._optuna.trial.TrialState.FAIL)

    def tell(self, number: int, scores: Mapping[float, float], finished: bool) -> None:
        states = self._optuna.trial.TrialState
        asked, given = self._asked.pop(number, None), self._given.pop(number, None)
        if given is None and asked is not None:
            for step, score in enumerate(scores.values()):
                asked.report(score, step)
            if finished:
                self._study.tell(asked, list(scores.values())[-1])
            else:
                self._study.tell(asked, state=states.PRUNED)
            return
        if asked is not None:
            self._study.tell(asked, state=states.FAIL)
        params = self._params(given or {})
        if params is not None:
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    state=states.COMPLETE if finished else states.PRUNED,
                    params=params,
                    distributions=self._distributions,
                    value=list(scores.values())[-1] if scores else None,
                    intermediate_values=dict(enumerate(scores.values())),
                )
            )

    def _params(self, overrides: Overrides) -> dict[str, Any] | None:
        """The study's parameters for `overrides`; None where a value lies outside the space."""
        if set(overrides) != set(self._space):
            return None
        params = {path: _parameter(domain, overrides[path]) for path, domain in self._space.items()}
        inside = all(_contains(self._distributions[path], value) for path, value in params.items())
        return params if inside else None


def _distribution(domain: Domain) -> Any:
    from optuna import distributions

    if isinstance(domain, Choice):  # by place: optuna's categories are plain scalars, ours may be lists
        return distributions.CategoricalDistribution(tuple(range(len(domain.values))))
    if isinstance(domain, Integer | LogInt):
        return distributions.IntDistribution(domain.low, domain.high, log=isinstance(domain, LogInt))
    if isinstance(domain, QUniform):
        values: Sequence[Any] = listed(domain) or []
        return distributions.FloatDistribution(domain.low, values[-1], step=domain.step)
    return distributions.FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _value(domain: Domain, parameter: Any) -> Json:
    return domain.values[parameter] if isinstance(domain, Choice) else cast("Json", parameter)


def _parameter(domain: Domain, value: Json) -> Any:
    if not isinstance(domain, Choice):
        return value
    return domain.values.index(value) if value in domain.values else None


def _contains(distribution: Any, value: Any) -> bool:
    if value is None or (isinstance(value, list | dict | str)):
        return False
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def open_sampler(spec: SearchSpec, mode: Mode) -> Sampler:
    """The sampler that `spec.algorithm` names."""
    return Grid(spec.space) if spec.algorithm == "grid" else Optuna(spec, mode)
