import json
from pathlib import Path

import pytest

from petl_ray.tuning.ranking import ranked_trials
from tests.tuning.fake_training.asking import ask
from tests.tuning.test_race import ride


def line(number: int, state: str, *scores: float, **more: object) -> dict[str, object]:
    return {
        "number": number,
        "state": state,
        "scores": dict(zip(("0.5", "1.0"), scores, strict=False)),
        "overrides": {},
        **more,
    }


def lay(directory: Path, rows: list[dict[str, object]]) -> Path:
    (directory / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = [{"number": 1, "rung": rung, "replayed": rung == 0, "seconds": 1.25} for rung in (0, 1)]
    (directory / "timings.jsonl").write_text("".join(json.dumps(time) + "\n" for time in times))
    return directory


ROWS = [
    line(0, "finished", 0.5, 0.7),
    line(1, "finished", 0.4, 0.9),
    line(2, "stopped", 0.3),
    line(3, "diverged", 0.6),
    line(4, "rejected", reason="too large"),
    line(5, "stopped", 0.45),
    line(6, "finished", 0.5, 0.7, parents={"0.5": 1}),
]


@pytest.mark.parametrize(("mode", "order"), [("max", [1, 0, 6, 5, 2, 3, 4]), ("min", [0, 6, 1, 2, 5, 3, 4])])
def test_who_came_furthest_stands_first_and_then_the_best(tmp_path: Path, mode: str, order: list[int]) -> None:
    ranked = ranked_trials(lay(tmp_path, ROWS), "max" if mode == "max" else "min")
    assert [trial.number for trial in ranked] == order
    assert [trial.rank for trial in ranked] == [1, 2, 3, 4, 5, 6, 7]


def test_each_is_held_against_the_default_at_its_own_rung(tmp_path: Path) -> None:
    ranked = {trial.number: trial for trial in ranked_trials(lay(tmp_path, ROWS), "max")}
    assert ranked[1].gain == pytest.approx(0.2) and ranked[1].seconds == 2.5
    assert ranked[2].gain == pytest.approx(-0.2) and (ranked[2].share, ranked[2].rungs) == (0.5, 1)
    assert ranked[4].gain is None and ranked[4].score is None and ranked[4].reason == "too large"
    assert ranked[6].parents == {"0.5": 1}


def test_the_winner_of_a_race_is_ranked_first(tmp_path: Path) -> None:
    for scheduler in ("asha", "hyperband", "pbt"):
        race = ride(ask(scheduler=scheduler, trials=12))
        ranked = ranked_trials(lay(tmp_path, [candidate.row() for candidate in race.candidates]), "max")
        assert ranked[0].number == race.winner().number and len(ranked) == 12
        assert {trial.bracket is None for trial in ranked} == {scheduler != "hyperband"}
