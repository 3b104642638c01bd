"""The promotion rows: one chain whatever happens at once, one promotion per key, and a story that can be read back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from petl_ray.artifact import Release
from petl_ray.errors import ConflictError, NotFoundError
from petl_ray.registry import current
from petl_ray.registry.gate import Decision
from petl_ray.registry.promotions import (
    Promotion,
    Request,
    by_gate,
    by_hand,
    champion,
    champions,
    earlier_champion,
    history,
    judged,
    release_of,
    undone,
    why,
)
from petl_ray.store import Database, open_database
from tests.plainstep import PlainStep
from tests.registry.conftest import make_release


def promote(database: Database, release: Release, key: str, action: str = "promote") -> Promotion:
    assert action in ("promote", "rollback")
    return judged(database, Request(key, release, "tester"), by_hand("because", action))  # type: ignore[arg-type]


def chain(database: Database, task: str = "emails") -> list[Promotion]:
    """The moves of the name, oldest first, each checked to start where the one before ended."""
    moves = [row for row in reversed(history(database, task)) if row.moved]
    for before, after in pairwise(moves):
        assert after.previous_version == before.version
        assert after.previous_digest == before.adapter_digest
    assert moves[0].previous_version is None
    standing = champion(database, task)
    assert standing is not None
    assert (standing.version, standing.promotion_id) == (moves[-1].version, moves[-1].id)
    return moves


def test_a_task_without_promotions_has_no_champion(database: Database, database_url: str) -> None:
    assert champion(database, "emails") is None
    assert champions(database) == {}
    assert current("emails", database_url) is None
    with pytest.raises(NotFoundError, match="no champion"):
        why(database, "emails")


def test_a_promotion_moves_the_name_and_leaves_a_row(each_database_url: str, step: PlainStep) -> None:
    database = open_database(each_database_url)
    first, second = make_release(step, 1), make_release(step, 2)
    promote(database, first, "a")
    promote(database, second, "b")
    standing = champion(database, "emails")
    assert standing is not None
    assert standing.release.adapter == second.adapter
    assert standing.release.status == "champion"
    assert current("emails", each_database_url) == second.adapter
    assert [move.version for move in chain(database)] == [1, 2]
    assert abs(standing.changed_at - history(database, "emails")[1].at) < 60


def test_the_same_key_is_one_promotion(database: Database, step: PlainStep) -> None:
    release = make_release(step, 1)
    first = promote(database, release, "a")
    promote(database, make_release(step, 2), "b")
    again = promote(database, release, "a")
    assert again == first
    assert len(history(database)) == 2
    standing = champion(database, "emails")
    assert standing is not None
    assert standing.version == 2


def test_a_key_does_not_serve_two_adapters(database: Database, step: PlainStep) -> None:
    promote(database, make_release(step, 1), "a")
    with pytest.raises(ConflictError, match="one key is one promotion"):
        promote(database, make_release(step, 2), "a")


def test_a_refused_candidate_leaves_the_champion(database: Database, step: PlainStep) -> None:
    promote(database, make_release(step, 1), "a")
    before = champion(database, "emails")
    decide = by_gate(lambda digest: Decision("refused", (f"worse than {digest}",)))
    row = judged(database, Request("b", make_release(step, 2), "gate"), decide)
    assert row.action == "refuse"
    assert row.release.status == "refused"
    assert row.reasons == (f"worse than {before.adapter_digest}",) if before else False
    assert champion(database, "emails") == before
    assert [told.action for told in why(database, "emails", 2)] == ["refuse"]


def test_a_champion_promoted_again_is_recorded_and_nothing_moves(database: Database, step: PlainStep) -> None:
    promote(database, make_release(step, 1), "a")
    before = champion(database, "emails")
    again = promote(database, make_release(step, 1), "b")
    assert not again.moved
    assert again.projected
    assert champion(database, "emails") == before
    assert len(history(database)) == 2


def test_a_champion_promoted_again_with_its_base_elsewhere_is_named_as_it_is_now(
    database: Database, step: PlainStep
) -> None:
    first = make_release(step, 1)
    base = first.adapter.base.model_copy(update={"uri": "/moved/since"})
    moved = first.model_copy(update={"adapter": first.adapter.model_copy(update={"base": base})})
    promote(database, first, "a")
    again = promote(database, moved, "b")
    assert not again.moved
    standing = champion(database, "emails")
    assert standing is not None
    assert (standing.version, standing.adapter_digest) == (1, first.adapter.digest)
    assert standing.release.adapter.base.uri == "/moved/since"
    with pytest.raises(NotFoundError, match=r"it was the first, so there is nothing to go back to\.$"):
        earlier_champion(database, "emails")


def test_tasks_do_not_see_each_other(database: Database, step: PlainStep) -> None:
    promote(database, make_release(step, 1, "emails"), "a")
    promote(database, make_release(step, 4, "reviews"), "b")
    assert {task: standing.version for task, standing in champions(database).items()} == {"emails": 1, "reviews": 4}
    assert [row.task for row in history(database, "reviews")] == ["reviews"]


def test_rolling_back_twice_walks_back_and_not_to_and_fro(database: Database, step: PlainStep) -> None:
    for version in (1, 2, 3):
        promote(database, make_release(step, version), f"p{version}")
    for expected in (2, 1):
        release = earlier_champion(database, "emails")
        assert release.version == expected
        promote(database, release, f"r{expected}", "rollback")
    with pytest.raises(NotFoundError, match=r"it was the first\. Name another that was champion with `--to`: 2, 3\."):
        earlier_champion(database, "emails")
    assert [move.version for move in chain(database)] == [1, 2, 3, 2, 1]


def test_only_what_was_champion_can_be_rolled_back_to(database: Database, step: PlainStep) -> None:
    promote(database, make_release(step, 1), "a")
    promote(database, make_release(step, 3), "b")
    refuse = by_gate(lambda _: Decision("refused", ("no",)))
    judged(database, Request("c", make_release(step, 2), "gate"), refuse)
    assert earlier_champion(database, "emails", to=1).version == 1
    with pytest.raises(NotFoundError, match="never was champion; only 1, 3 were"):
        earlier_champion(database, "emails", to=2)
    known = release_of(database, "emails", 2)
    assert known is not None
    assert known.adapter == make_release(step, 2).adapter
    assert release_of(database, "emails", 9) is None


def test_a_rollback_of_a_name_that_moved_meanwhile_is_a_conflict(database: Database, step: PlainStep) -> None:
    promote(database, make_release(step, 1), "a")
    promote(database, make_release(step, 2), "b")
    with pytest.raises(ConflictError, match="version 2 stands, expected 1"):
        judged(database, Request("c", make_release(step, 1), "tester"), by_hand("back", "rollback", expected=1))
    assert len(history(database)) == 2


def gated(database: Database, release: Release, key: str) -> Promotion:
    """What a run's gate that is content with every candidate makes of `release`."""
    content = by_gate(lambda digest: Decision("champion", (f"better than {digest}",)))
    return judged(database, Request(key, release, "run r", run_id="r"), content)


def test_the_gate_refuses_what_a_person_rolled_back_from(each_database_url: str, step: PlainStep) -> None:
    database = open_database(each_database_url)
    first, second, third = (make_release(step, version) for version in (1, 2, 3))
    assert [gated(database, one, f"g{one.version}").action for one in (first, second)] == ["promote", "promote"]
    ask = Request("back", first, "ada")
    when = judged(database, ask, by_hand("Refunds were called praise.", "rollback")).at
    refused = gated(database, second, "g2 again")
    assert (refused.action, refused.release.status) == ("refuse", "refused")
    day = time.strftime("%Y-%m-%d", time.gmtime(when))
    assert refused.reasons == (
        f"Version 2 was rolled back by ada on {day}: Refunds were called praise; `petl-ray adapters promote emails 2 "
        "--reason ...` brings it back.",
        f"better than {first.adapter.digest}",
    )
    assert undone(database, "emails") == {second.adapter.digest}
    assert [move.version for move in chain(database)] == [1, 2, 1]
    assert gated(database, third, "g3").action == "promote"  # another adapter is judged as ever
    assert gated(database, second, "g2 once more").action == "refuse"
    assert gated(database, make_release(step, 2, "reviews"), "other task").action == "promote"
    database.close()


def test_what_a_person_brought_back_passes_the_gate_again(database: Database, step: PlainStep) -> None:
    first, second, third = (make_release(step, version) for version in (1, 2, 3))
    gated(database, first, "g1")
    gated(database, second, "g2")
    promote(database, first, "back", "rollback")
    promote(database, second, "forth")
    assert undone(database, "emails") == set()
    assert gated(database, second, "kept").reasons == (f"better than {second.adapter.digest}",)
    gated(database, third, "g3")
    assert gated(database, second, "g2 again").action == "promote"
    promote(database, first, "back again", "rollback")
    assert gated(database, second, "g2 at last").action == "refuse"


def test_without_a_champion_the_newest_refusal_is_told(database: Database, step: PlainStep) -> None:
    said = iter(["1 is worse", "2 is worse"])
    refuse = by_gate(lambda _: Decision("refused", (next(said),)))
    for version in (1, 2):
        ask = Request(f"g{version}", make_release(step, version), "run r", run_id="r")
        assert judged(database, ask, refuse).action == "refuse"
    assert [row.reasons for row in why(database, "emails")] == [("2 is worse",)]


def test_sixteen_threads_promote_and_no_promotion_is_lost(each_database_url: str, step: PlainStep) -> None:
    """Every thread opens the database itself and promotes five versions; the moves form one chain."""
    releases = [[make_release(step, 1 + 5 * worker + turn) for turn in range(5)] for worker in range(16)]
    open_database(each_database_url).close()
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        database = open_database(each_database_url)
        try:
            for release in releases[worker]:
                promote(database, release, f"w{release.version}")
        except BaseException as error:  # noqa: BLE001 - whatever a thread raises must fail the test
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    database = open_database(each_database_url)
    assert sorted(move.version for move in chain(database)) == list(range(1, 81))
    database.close()


def test_sixteen_threads_with_one_key_are_one_promotion(each_database_url: str, step: PlainStep) -> None:
    release = make_release(step, 1)
    database = open_database(each_database_url)
    rows: list[Promotion] = []
    threads = [threading.Thread(target=lambda: rows.append(promote(database, release, "one"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 16
    assert len({row.id for row in rows}) == 1
    assert len(history(database)) == 1
    database.close()


_PROMOTER = """
import sys, time
from pathlib import Path
from petl_ray.artifact import Release
from petl_ray.registry.promotions import Request, by_hand, judged
from petl_ray.store import open_database

url, path, start = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
releases = [Release.model_validate_json(line) for line in path.read_text().splitlines()]
database = open_database(url)
time.sleep(max(0.0, start - time.time()))
for release in releases:
    judged(database, Request(f"v{release.version}", release, "process"), by_hand("because"))
"""


def test_processes_promote_and_no_promotion_is_lost(each_database_url: str, step: PlainStep, tmp_path: Path) -> None:
    """Four processes start promoting at one moment, ten versions each."""
    start = time.time() + 4
    started = []
    for worker in range(4):
        lines = [make_release(step, 1 + 10 * worker + turn).model_dump_json() for turn in range(10)]
        path = tmp_path / f"releases-{worker}.jsonl"
        path.write_text("\n".join(lines))
        command = [sys.executable, "-c", _PROMOTER, each_database_url, str(path), str(start)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    database = open_database(each_database_url)
    assert sorted(move.version for move in chain(database)) == list(range(1, 41))
    database.close()
