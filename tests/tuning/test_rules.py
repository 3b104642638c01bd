from typing import Any

from petl_ray.tuning.rules import Standing, asha_keeps, better, median_keeps


def test_better_knows_both_directions() -> None:
    assert better("max", 2, 1) and not better("max", 1, 1) and better("min", 1, 2)


def test_asha_keeps_the_best_share() -> None:
    scores = [Standing(score) for score in (0.1, 0.4, 0.3, 0.2)]
    assert [asha_keeps("max", score, scores, 2.0) for score in scores] == [False, True, True, False]
    assert [asha_keeps("min", score, scores, 2.0) for score in scores] == [True, False, False, True]


def test_equal_scores_draw_lots_for_the_places_that_are_left_and_no_lot_outweighs_a_score() -> None:
    mode: Any
    for mode, best in (("max", 0.6), ("min", 0.4)):
        kept = []
        for seed in range(40):
            standings = [Standing.drawn(score, seed, 0, number) for number, score in enumerate((0.5, 0.5, 0.5, best))]
            again = [Standing.drawn(score, seed, 0, number) for number, score in enumerate((0.5, 0.5, 0.5, best))]
            goes_on = [asha_keeps(mode, one, standings, 2.0) for one in standings]
            assert goes_on == [asha_keeps(mode, one, again, 2.0) for one in again]
            assert goes_on[3] and sum(goes_on) == 2
            kept.append(goes_on.index(True))
        assert all(kept.count(number) >= 5 for number in (0, 1, 2)), "everybody has the same chance"


def test_asha_keeps_at_least_one() -> None:
    low, high = Standing(0.1), Standing(0.2)
    assert asha_keeps("max", low, [low], 4.0)
    assert [asha_keeps("max", one, [low, high], 8.0) for one in (low, high)] == [False, True]


def test_median_keeps_what_is_not_worse() -> None:
    assert [median_keeps("max", score, [1, 2, 3]) for score in (1, 2, 3)] == [False, True, True]
    assert [median_keeps("min", score, [1, 2, 3, 4]) for score in (1, 2, 3, 4)] == [True, True, False, False]
