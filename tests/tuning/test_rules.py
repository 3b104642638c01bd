from typing import Any

from petl_ray.tuning.rules import Standing, asha_keeps, better, median_keeps


def test_better_knows_both_directions() -> None:
    assert better("max", 2, 1) and not better("max", 1, 1) and better("min", 1, 2)


def test_asha_keeps_the_best_share_and_ties_with_its_last() -> None:
    scores = [Standing(score) for score in (0.1, 0.4, 0.3, 0.2)]
    assert [asha_keeps("max", score, scores, 2.0) for score in scores] == [False, True, True, False]
    assert [asha_keeps("min", score, scores, 2.0) for score in scores] == [True, False, False, True]
    alike = [Standing(score) for score in (0.5, 0.5, 0.5, 0.1)]
    assert [asha_keeps("max", score, alike, 4.0) for score in alike] == [True, True, True, False]


def test_of_equal_scores_the_lower_loss_goes_on_and_no_loss_outweighs_a_score() -> None:
    mode: Any
    for mode, best in (("max", 0.6), ("min", 0.4)):
        standings = [Standing(0.5, 0.7), Standing(0.5, 0.6), Standing(0.5, 0.65), Standing(best, 9.0)]
        assert [asha_keeps(mode, one, standings, 2.0) for one in standings] == [False, True, False, True]


def test_asha_keeps_at_least_one() -> None:
    low, high = Standing(0.1), Standing(0.2)
    assert asha_keeps("max", low, [low], 4.0)
    assert [asha_keeps("max", one, [low, high], 8.0) for one in (low, high)] == [False, True]


def test_median_keeps_what_is_not_worse() -> None:
    assert [median_keeps("max", score, [1, 2, 3]) for score in (1, 2, 3)] == [False, True, True]
    assert [median_keeps("min", score, [1, 2, 3, 4]) for score in (1, 2, 3, 4)] == [True, True, False, False]
