"""Names are read from the journal and never guessed."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from petl_ray.errors import NotFoundError, PlanError
from petl_ray.serving.names import Catalogue, Model, near
from petl_ray.store import open_database
from petl_ray.store.tables import promotions
from tests.serving.world import World


def test_a_name_means_what_was_promoted_last(world: World) -> None:
    old, new = world.adapter("urgency", seed=1), world.adapter("urgency", seed=2)
    catalogue = Catalogue(world.services["database"])
    world.promote(old, 1)
    assert catalogue.names()[0]["urgency"].digest == old.digest
    world.promote(new, 2)
    named = catalogue.names()[0]["urgency"]
    assert (named.digest, named.version, named.adapter) == (new.digest, 2, new)


def test_a_digest_is_found_by_its_beginning_now_and_after_it_was_replaced(world: World) -> None:
    old, new = world.adapter("urgency", seed=1), world.adapter("urgency", seed=2)
    world.promote(old, 1)
    world.promote(new, 2)
    catalogue = Catalogue(world.services["database"])
    assert catalogue.find(Model("urgency", old.digest[:12])).version == 1
    assert asyncio.run(catalogue.resolve(Model("urgency", new.digest))).version == 2


def test_what_the_gate_refused_is_not_found(world: World) -> None:
    refused = world.adapter("urgency", seed=1)
    world.promote(refused, 1, action="refuse")
    catalogue = Catalogue(world.services["database"])
    assert catalogue.names() == ({}, {})
    with pytest.raises(NotFoundError, match="ever promoted"):
        catalogue.find(Model("urgency", refused.digest))


def test_a_release_under_a_false_digest_is_left_out_and_reported(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1, digest="0" * 64)
    world.promote(world.adapter("reviews", seed=1), 1)
    found, odd = Catalogue(world.services["database"]).names()
    assert set(found) == {"reviews"}
    assert "does not carry the adapter" in odd["urgency"]


def test_a_release_that_is_none_is_left_out_and_reported(world: World) -> None:
    world.promote(world.adapter("urgency", seed=1), 1)
    with open_database(world.services["database"]).begin() as connection:
        connection.execute(update(promotions).values(release={"kind": "release", "task": 7}))
    found, odd = Catalogue(world.services["database"]).names()
    assert not found
    assert "cannot be read" in odd["urgency"]


@pytest.mark.parametrize(
    "text",
    ["", "../etc/passwd", "a/b", "a b", "a@xyz", "a@" + "0" * 11, "a@" + "0" * 65, "a..b", "-a", "a\n", "%2e%2e", "a@"],
)
def test_a_model_that_is_no_name_is_refused_before_it_reaches_anything(text: str) -> None:
    with pytest.raises(PlanError, match="model: got"):
        Model.parse(text)


def test_a_model_is_a_task_or_a_digest_of_it() -> None:
    assert Model.parse("support-tickets.v2") == Model("support-tickets.v2")
    assert Model.parse("emails@" + "ab" * 32) == Model("emails", "ab" * 32)


def test_an_unknown_name_is_told_its_neighbours() -> None:
    assert near("urgancy", ["urgency", "reviews"]) == "Choose urgency"
    assert near("zzz", ["urgency", "reviews"]) == "Choose reviews or urgency"
    assert "Promote" in near("zzz", [])
