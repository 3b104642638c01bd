import pytest

from petl_ray.tuning.sampler import Overrides, Sampler, open_sampler
from tests.tuning.fake_training.asking import ask


def follow(sampler: Sampler, count: int) -> list[Overrides]:
    """Ask in generations of four; the score of a point is how near its rate is to 1e-2."""
    asked: list[Overrides] = []
    while len(asked) < count:
        numbers = range(len(asked), len(asked) + 4)
        points = [sampler.ask(number) or {} for number in numbers]
        for number, point in zip(numbers, points, strict=True):
            score = -abs(float(str(point["learning_rate"])) - 1e-2)
            sampler.tell(number, {0.5: score, 1.0: score}, number % 2 == 0)
        asked += points
    return asked


def learned(sampler: Sampler) -> list[tuple[str, float | None, dict[int, float]]]:
    """Every point the study knows: its state, value and the scores on its way."""
    return [(one.state.name, one.value, one.intermediate_values) for one in sampler._study.trials]  # type: ignore[attr-defined]


@pytest.mark.parametrize("algorithm", ["optuna", "random"])
def test_equal_seeds_ask_equal_points_and_other_seeds_others(algorithm: str) -> None:
    runs = [follow(open_sampler(ask(algorithm=algorithm, seed=seed), "max"), 12) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert all(point["method.rank"] in (2, 4, 8, 16) for point in runs[0])


def test_tpe_learns_where_random_does_not() -> None:
    def late(algorithm: str) -> float:
        errors = []
        for seed in range(3):
            points = follow(open_sampler(ask(algorithm=algorithm, seed=seed), "max"), 40)[20:]
            errors += [abs(float(str(point["learning_rate"])) - 1e-2) for point in points]
        return sorted(errors)[len(errors) // 2]

    assert late("optuna") < late("random")


def test_a_grid_is_every_combination_once() -> None:
    sampler = open_sampler(ask(algorithm="grid", space={"seed": [0, 1], "method.rank": {"integer": [1, 3]}}), "max")
    points = [sampler.ask(number) for number in range(7)]
    assert points[:2] == [{"seed": 0, "method.rank": 1}, {"seed": 0, "method.rank": 2}]
    assert len({str(point) for point in points[:6]}) == 6 and points[6] is None


def test_what_a_record_says_replaces_what_was_asked_even_outside_the_space() -> None:
    sampler = open_sampler(ask(), "max")
    for number, rate in enumerate((1e-3, 7.0)):
        sampler.ask(number)
        sampler.replace(number, {"learning_rate": rate, "method.rank": 4})
        sampler.tell(number, {1.0: 0.5}, True)
    assert [(state, value) for state, value, _ in learned(sampler)] == [
        ("FAIL", None),
        ("COMPLETE", 0.5),
        ("FAIL", None),
    ]
    assert sampler._study.trials[1].params["learning_rate"] == 1e-3  # type: ignore[attr-defined]
    assert sampler.ask(2) is not None


def test_no_scores_are_as_bad_as_can_be_and_forgotten_points_teach_nothing() -> None:
    sampler = open_sampler(ask(startup_trials=1), "min")
    sampler.ask(0)
    sampler.tell(0, {}, False)
    sampler.ask(1)
    sampler.forget(1)
    sampler.ask(1)
    sampler.tell(1, {0.5: 0.1}, False)
    assert learned(sampler) == [("PRUNED", None, {}), ("FAIL", None, {}), ("PRUNED", 0.1, {0: 0.1})]
    assert sampler.ask(2) is not None
