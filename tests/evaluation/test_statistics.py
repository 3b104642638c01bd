"""The bootstrap: known cases, properties, pairing, and (long) whether intervals cover what they promise to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from petl_ray.evaluation.spec import MODES
from petl_ray.evaluation.statistics import Sampled, leave_one_out, resampled_rows, sample
from petl_ray.tasks import DIRECTIONS
from petl_ray.tasks.metrics import Outcomes

METRICS = ("accuracy", "macro_f1", "matthews")


def outcomes(truth: object, guess: object, losses: object = None) -> Outcomes:
    references = np.asarray(truth, dtype=np.int64)
    return Outcomes(
        references,
        np.asarray(guess, dtype=np.int64),
        np.asarray(losses if losses is not None else np.zeros(len(references)), dtype=np.float64),
        np.ones(len(references), dtype=np.int64),
    )


def guesses(rows: int, right: float, seed: int, labels: int = 4) -> Outcomes:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, labels, rows)
    wrong = (truth + generator.integers(1, labels, rows)) % labels
    return outcomes(truth, np.where(generator.random(rows) < right, truth, wrong))


def test_the_directions_are_those_of_the_tasks() -> None:
    assert MODES == DIRECTIONS


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    system = {"a": guesses(150, 0.8, 0)}
    first, again, other = (sample(system, "accuracy", 4, 500, seed)["a"].interval(0.95) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_resampled_rows_do_not_depend_on_how_many_are_held_at_once() -> None:
    few = np.concatenate(list(resampled_rows(37, 50, 3, cells_each=1 << 20)))
    all_at_once = np.concatenate(list(resampled_rows(37, 50, 3, cells_each=1)))
    assert np.array_equal(few, all_at_once)
    assert few.shape == (50, 37)
    assert few.min() >= 0
    assert few.max() <= 36


def test_accuracy_has_nearly_the_interval_of_the_normal_approximation() -> None:
    truth = np.zeros(400, dtype=np.int64)
    guess = (np.arange(400) < 100).astype(np.int64)  # 75 % right
    found = sample({"a": outcomes(truth, guess)}, "accuracy", 2, 4000, 0)["a"].interval(0.95)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert found.low == pytest.approx(0.75 - half, abs=0.008)
    assert found.high == pytest.approx(0.75 + half, abs=0.008)


def test_a_difference_is_paired_over_rows() -> None:
    """Two systems that differ on few rows have a narrow difference, however wide each interval is."""
    base = guesses(300, 0.6, 1)
    better = base.predictions.copy()
    better[np.flatnonzero(better != base.references)[:12]] = base.references[
        np.flatnonzero(better != base.references)[:12]
    ]
    figures = sample({"a": outcomes(base.references, better), "b": base}, "accuracy", 4, 2000, 0)
    difference = (figures["a"] - figures["b"]).interval(0.95)
    alone = figures["a"].interval(0.95)
    assert difference.value == pytest.approx(0.04)
    assert difference.low > 0
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def test_a_system_does_not_differ_from_itself() -> None:
    system = guesses(80, 0.7, 2)
    figures = sample({"a": system, "b": system}, "macro_f1", 4, 300, 0)
    nothing = (figures["a"] - figures["b"]).interval(0.95)
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_what_is_always_right_has_no_spread() -> None:
    figure = sample({"a": outcomes([0, 1, 1, 0], [0, 1, 1, 0])}, "accuracy", 2, 200, 0)["a"].interval(0.95)
    assert (figure.low, figure.value, figure.high) == (1.0, 1.0, 1.0)


def test_a_single_row_is_answered_and_no_row_is_refused() -> None:
    figure = sample({"a": outcomes([0], [1])}, "accuracy", 2, 200, 0)["a"].interval(0.95)
    assert (figure.low, figure.high) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        sample({"a": outcomes([], [])}, "accuracy", 2, 200, 0)
    with pytest.raises(ValueError, match="the same rows"):
        sample({"a": outcomes([0], [1]), "b": outcomes([0, 1], [1, 1])}, "accuracy", 2, 200, 0)


def test_loss_is_the_mean_over_units_and_perplexity_its_exponential() -> None:
    scored = Outcomes(np.ones(3, np.int64), np.ones(3, np.int64), np.array([2.0, 4.0, 9.0]), np.array([1, 2, 7]))
    loss = sample({"a": scored}, "loss", 2, 200, 0)["a"]
    perplexity = sample({"a": scored}, "perplexity", 2, 200, 0)["a"]
    assert loss.value == pytest.approx(1.5)
    assert perplexity.value == pytest.approx(np.exp(1.5))
    assert np.allclose(perplexity.draws, np.exp(loss.draws))


answers = st.integers(2, 5).flatmap(
    lambda labels: st.lists(
        st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1)), min_size=2, max_size=40
    ).map(lambda pairs: (labels, np.array(pairs)))
)


@settings(max_examples=60, deadline=None)
@given(answers)
def test_values_are_those_of_scikit_learn(case: tuple[int, NDArray[np.int64]]) -> None:
    labels, pairs = case
    truth, guess = pairs[:, 0], pairs[:, 1]
    expected = {
        "accuracy": accuracy_score(truth, guess),
        "macro_f1": f1_score(truth, guess, average="macro", zero_division=0),
        "matthews": matthews_corrcoef(truth, guess),
    }
    for metric in METRICS:
        value = sample({"a": outcomes(truth, guess)}, metric, labels, 200, 0)["a"].value
        assert value == pytest.approx(expected[metric], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(answers, st.sampled_from([*METRICS, "loss"]))
def test_leaving_out_a_row_is_measuring_the_others(case: tuple[int, NDArray[np.int64]], metric: str) -> None:
    labels, pairs = case
    losses = np.linspace(0.1, 3.0, len(pairs))
    whole = outcomes(pairs[:, 0], pairs[:, 1], losses)
    left_out = leave_one_out(whole, metric, labels)
    for row in range(len(pairs)):
        others = np.arange(len(pairs)) != row
        rest = outcomes(pairs[others, 0], pairs[others, 1], losses[others])
        assert left_out[row] == pytest.approx(sample({"a": rest}, metric, labels, 200, 0)["a"].value, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(answers, st.sampled_from(METRICS), st.integers(0, 5))
def test_bounds_are_ordered_and_a_swapped_difference_is_mirrored(
    case: tuple[int, NDArray[np.int64]], metric: str, seed: int
) -> None:
    labels, pairs = case
    rolled = np.roll(pairs[:, 1], 1)
    figures = sample({"a": outcomes(*pairs.T), "b": outcomes(pairs[:, 0], rolled)}, metric, labels, 400, seed)
    there = (figures["a"] - figures["b"]).interval(0.9)
    back = (figures["b"] - figures["a"]).interval(0.9)
    assert there.low <= there.high
    assert there.value == pytest.approx(-back.value, abs=1e-6)
    assert there.low == pytest.approx(-back.high, abs=2e-6)
    assert there.high == pytest.approx(-back.low, abs=2e-6)


def test_bias_and_skewness_move_the_bounds() -> None:
    """A figure whose draws lie mostly below it gets bounds above the plain percentiles, and a skewed one leans."""
    generator = np.random.default_rng(0)
    draws = generator.normal(-0.5, 1.0, 4000)
    biased = Sampled(0.0, draws, np.array([0.0, 0.0])).interval(0.9)
    assert biased.low > np.quantile(draws, 0.05)
    assert biased.high > np.quantile(draws, 0.95)
    symmetric = generator.normal(0.0, 1.0, 4000)
    leaning = Sampled(0.0, symmetric, np.array([0.0] * 50 + [-20.0])).interval(0.9)
    assert leaning.low > np.quantile(symmetric, 0.05)


@pytest.mark.long
@pytest.mark.parametrize(("metric", "rows"), [("accuracy", 150), ("macro_f1", 200), ("matthews", 200)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric: str, rows: int) -> None:
    """A known population is sampled 400 times: its 95 % intervals hold the true value in 91.5 to 98 % of the cases."""
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    right = np.array([0.9, 0.8, 0.7, 0.6])

    def draw(number: int, seed: int) -> Outcomes:
        generator = np.random.default_rng(seed)
        truth = generator.choice(4, number, p=shares)
        wrong = (truth + generator.integers(1, 4, number)) % 4
        return outcomes(truth, np.where(generator.random(number) < right[truth], truth, wrong))

    truth = sample({"a": draw(2_000_000, 10**6)}, metric, 4, 1, 0)["a"].value
    found = [sample({"a": draw(rows, seed)}, metric, 4, 1000, seed)["a"].interval(0.95) for seed in range(400)]
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.915 <= covered <= 0.98


@pytest.mark.long
def test_a_paired_lower_bound_above_zero_is_rare_where_nothing_differs() -> None:
    """Two systems that are equally good on average: at 95 % the lower bound is above 0 in about 1 case of 40."""
    alarms = 0
    for seed in range(600):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 2, 150)
        systems = {
            name: outcomes(truth, np.where(generator.random(150) < 0.85, truth, 1 - truth)) for name in ("a", "b")
        }
        figures = sample(systems, "accuracy", 2, 1000, seed)
        alarms += (figures["a"] - figures["b"]).interval(0.95).low > 0
    assert alarms / 600 <= 0.045
