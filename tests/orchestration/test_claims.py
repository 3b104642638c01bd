"""Who works on what: one owner at a time, a fence that only grows, the dead found out at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petl_ray.errors import ClaimLost
from petl_ray.orchestration import Home
from petl_ray.orchestration.claims import Claim, beat, holders, is_free, take
from petl_ray.orchestration.home import opened
from petl_ray.orchestration.owner import Owner


def claim(home: Home, *names: str, lasts_s: float = 60.0, owner: Owner | None = None) -> dict[str, Claim]:
    database = opened(home).database
    with database.begin() as conn:
        return take(database, conn, names, owner or Owner.new(), lasts_s)


def check(home: Home, held: Claim) -> None:
    with opened(home).database.begin() as conn:
        held.check(conn)


def release(home: Home, held: Claim) -> None:
    with opened(home).database.begin() as conn:
        held.release(conn)


def test_a_name_has_one_owner_and_each_new_owner_a_higher_fence(either_home: Home) -> None:
    first = claim(either_home, "a", "b")
    assert set(first) == {"a", "b"}
    assert set(claim(either_home, "a", "c")) == {"c"}
    assert not is_free(opened(either_home).database, "a")
    release(either_home, first["a"])
    assert is_free(opened(either_home).database, "a")
    assert claim(either_home, "a")["a"].fence == first["a"].fence + 1


def test_of_many_who_want_a_new_name_at_once_exactly_one_gets_it(either_home: Home) -> None:
    opened(either_home)
    won: list[Claim] = []
    start = threading.Barrier(8, timeout=30)

    def race() -> None:
        start.wait()
        won.extend(claim(either_home, "x", "y").values())

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((one.name, one.fence) for one in won) == [("x", 1), ("y", 1)]


def test_an_expired_claim_may_be_taken_and_its_old_owner_finds_out(either_home: Home) -> None:
    old = claim(either_home, "a", lasts_s=0.0)["a"]
    check(either_home, old)
    new = claim(either_home, "a")["a"]
    with pytest.raises(ClaimLost):
        check(either_home, old)
    release(either_home, old)
    check(either_home, new)
    assert not is_free(opened(either_home).database, "a")


def test_a_beat_keeps_what_is_ours_and_tells_what_is_lost(either_home: Home) -> None:
    database = opened(either_home).database
    kept, lost = claim(either_home, "kept", lasts_s=0.0)["kept"], claim(either_home, "lost", lasts_s=0.0)["lost"]
    claim(either_home, "lost")
    beat(database, [kept, lost], 60.0)
    assert not kept.lost.is_set()
    assert lost.lost.is_set()
    assert not is_free(database, "kept")
    with database.read() as conn:
        assert list(holders(database, conn, ["kept", "nobody"])) == ["kept"]


def test_a_dead_process_of_this_machine_holds_nothing(home: Home) -> None:
    told = "from petl_ray.orchestration.owner import Owner; print(Owner.new())"
    child = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    dead = Owner.parse(child.stdout.strip())
    assert dead is not None
    claim(home, "a", lasts_s=3600.0, owner=dead)
    assert is_free(opened(home).database, "a")


def test_only_the_same_process_of_the_same_machine_can_be_known_to_be_dead() -> None:
    me = Owner.new()
    assert not me.is_known_dead
    assert Owner.parse(str(me)) == me
    assert Owner.parse("somebody else") is None
    reborn = Owner(me.attempt, me.host, me.machine, me.pid, me.started - 1)
    assert reborn.is_known_dead
    elsewhere = Owner(me.attempt, "far", "another-boot/1", me.pid, me.started - 1)
    assert not elsewhere.is_known_dead


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.sampled_from(["take", "expire", "release", "write"]), min_size=1, max_size=12))
def test_whatever_happens_only_the_newest_fence_can_write(home: Home, moves: list[str]) -> None:
    name = f"n{time.monotonic_ns()}"
    owners: list[Claim] = []
    for move in moves:
        if move in ("take", "expire"):
            owners += claim(home, name, lasts_s=0.0 if move == "expire" else 60.0).values()
        elif move == "release" and owners:
            release(home, owners[-1])
        for stale in owners[:-1]:
            with pytest.raises(ClaimLost):
                check(home, stale)
    assert [one.fence for one in owners] == list(range(1, len(owners) + 1))
    if owners:
        check(home, owners[-1])
