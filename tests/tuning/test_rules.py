from petl_ray.tuning.rules import asha_keeps, better, median_keeps


def test_better_knows_both_directions() -> None:
    assert better("max", 2, 1) and not better("max", 1, 1) and better("min", 1, 2)


def test_asha_keeps_the_best_share_and_ties_with_its_last() -> None:
    scores = [0.1, 0.4, 0.3, 0.2]
    assert [asha_keeps("max", score, scores, 2.0) for score in scores] == [False, True, True, False]
    assert [asha_keeps("min", score, scores, 2.0) for score in scores] == [True, False, False, True]
    assert [asha_keeps("max", score, [0.5, 0.5, 0.5, 0.1], 4.0) for score in (0.5, 0.1)] == [True, False]


def test_asha_keeps_at_least_one() -> None:
    assert asha_keeps("max", 0.1, [0.1], 4.0)
    assert [asha_keeps("max", score, [0.1, 0.2], 8.0) for score in (0.1, 0.2)] == [False, True]


def test_median_keeps_what_is_not_worse() -> None:
    assert [median_keeps("max", score, [1, 2, 3]) for score in (1, 2, 3)] == [False, True, True]
    assert [median_keeps("min", score, [1, 2, 3, 4]) for score in (1, 2, 3, 4)] == [True, True, False, False]
