"""A driver process that tests kill, stop and race: `python -m tests.orchestration.driver HOME TALLY …`."""

from __future__ import annotations

import argparse

from petl_ray.orchestration import Home, Run, start_run
from petl_ray.verb import Question
from tests.orchestration.conftest import HERE
from tests.orchestration.verbs import CountSpec, climb, count, greet


def story(run: Run, tally: str) -> str:
    """Every kind of call once; the digest of what comes out."""
    base = run.make(count, CountSpec(number=1, tally=tally))
    tower = run.make(climb, CountSpec(number=2, rounds=3, tally=tally), base)
    questions = [Question(key, CountSpec(number=at + 10, tally=tally), (tower,)) for at, key in enumerate("ab")]
    both = run.pack(count, questions)
    final = run.make(count, CountSpec(number=100, tally=tally), both["a"], both["b"])
    run.do(greet, CountSpec(number=5, tally=tally), final)
    return final.digest


def slow(run: Run, tally: str, seconds: float) -> str:
    """One step of six rounds."""
    return run.make(climb, CountSpec(number=3, rounds=6, tally=tally, seconds=seconds)).digest


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("home")
    options.add_argument("tally")
    options.add_argument("--database", default="")
    options.add_argument("--seconds", type=float, default=0.0)
    options.add_argument("--lasts", type=float, default=15.0)
    options.add_argument("--plan", default="story")
    given = options.parse_args()
    home = Home.at(given.home)
    if given.database:
        home = Home(home.path, home.store_url, given.database, home.tracking_url)
    locked = {"plan": given.plan}
    with start_run(home, pipeline="test", locked=locked, placement=HERE, lasts_s=given.lasts) as run:
        done = slow(run, given.tally, given.seconds) if given.seconds else story(run, given.tally)
    print(done)


if __name__ == "__main__":
    main()
