"""The gate's verb, MLflow's alias as a projection, foreign hands, and what people ask at the terminal: real MLflow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from petl_ray.artifact import Adapter, Release
from petl_ray.errors import ConflictError, NotFoundError, PermanentError, PlanError
from petl_ray.registry import GateSpec, RegistrySpec, adapters, current, promote, register
from petl_ray.registry.projection import project
from petl_ray.registry.promotions import champion, history
from petl_ray.registry.tracking import ADAPTER_TAG, Tracking
from petl_ray.store import Database
from tests.plainstep import PlainStep
from tests.registry.conftest import ASKED_BY, make_adapter, make_report

World = Callable[[str], PlainStep]
MODEL = "petl-ray.emails"


def registered(world: World, seed: int) -> Release:
    adapter = make_adapter(world("train"), seed=seed)
    release = register(RegistrySpec(), adapter, make_report(adapter), step=world(f"register {seed}"))
    assert isinstance(release, Release)
    return release


def judged(world: World, release: Release, name: str, champion: Adapter | None = None, **figures: float) -> Release:
    report = make_report(release.adapter, champion=champion, **figures)
    outcome = promote(GateSpec(margin=0.03), release, report, step=world(name))
    assert isinstance(outcome, Release)
    return outcome


def test_a_passed_candidate_is_served_and_the_alias_follows(
    world: World, database: Database, database_url: str, tracking: str
) -> None:
    release = registered(world, 1)
    outcome = judged(world, release, "promote")
    assert outcome.status == "champion"
    assert outcome.adapter == release.adapter
    assert len(outcome.reasons) == 2
    assert current("emails", database_url) == release.adapter
    assert Tracking(tracking).alias(MODEL, "champion") == 1
    (row,) = history(database, "emails")
    assert row.projected
    assert (row.run_id, row.actor) == ("run-1", "run run-1")


def test_a_refused_candidate_leaves_the_champion_served(world: World, database_url: str, tracking: str) -> None:
    first, second = registered(world, 1), registered(world, 2)
    judged(world, first, "promote 1")
    refused = judged(world, second, "promote 2", champion=first.adapter, over_champion=-0.05)
    assert refused.status == "refused"
    assert any("is below -0.0300" in reason for reason in refused.reasons)
    assert current("emails", database_url) == first.adapter
    assert Tracking(tracking).alias(MODEL, "champion") == 1


def test_the_same_step_gives_the_same_answer(world: World, database: Database) -> None:
    first, second = registered(world, 1), registered(world, 2)
    before = judged(world, first, "promote 1")
    judged(world, second, "promote 2", champion=first.adapter)
    assert judged(world, first, "promote 1") == before
    assert len(history(database)) == 2
    standing = champion(database, "emails")
    assert standing is not None
    assert standing.version == 2


def test_the_champion_judged_by_a_later_run_is_a_recorded_success(world: World, database: Database) -> None:
    release = registered(world, 1)
    judged(world, release, "promote")
    again = judged(world, release, "promote in a later run", over_head=-0.5)
    assert again.status == "champion"
    assert "already is the champion" in again.reasons[0]
    assert [(row.action, row.moved) for row in history(database)] == [("promote", False), ("promote", True)]


def test_a_release_is_judged_by_its_own_report_only(world: World) -> None:
    first, second = registered(world, 1), registered(world, 2)
    with pytest.raises(ConflictError, match="judged by what was measured of it"):
        promote(GateSpec(), first, make_report(second.adapter), step=world("promote"))


def test_a_promotion_stands_while_mlflow_is_away_and_the_alias_is_repaired_later(
    world: World, database: Database, database_url: str, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = registered(world, 1)
    step = world("promote")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    step.services = {**step.services, "tracking": "http://127.0.0.1:9"}
    outcome = promote(GateSpec(), release, make_report(release.adapter), step=step)
    assert isinstance(outcome, Release)
    assert outcome.status == "champion"
    assert "promote.projection_waits" in [event for event, _ in step.events]
    assert current("emails", database_url) == release.adapter
    assert Tracking(tracking).alias(MODEL, "champion") is None
    (repair,) = project(database, tracking)
    assert (repair.was, repair.now, repair.foreign) == (None, 1, False)
    assert Tracking(tracking).alias(MODEL, "champion") == 1
    assert project(database, tracking) == []


def test_an_alias_moved_by_a_foreign_hand_is_a_proposal_and_is_put_back(
    world: World, database: Database, database_url: str, tracking: str
) -> None:
    first, second = registered(world, 1), registered(world, 2)
    judged(world, first, "promote")
    Tracking(tracking).point(MODEL, "champion", second.version)
    (repair,) = project(database, tracking)
    assert (repair.was, repair.now, repair.foreign) == (2, 1, True)
    assert current("emails", database_url) == first.adapter
    assert Tracking(tracking).alias(MODEL, "champion") == 1
    proposal = history(database, "emails")[0]
    assert (proposal.action, proposal.version, proposal.actor) == ("propose", 2, "mlflow")
    assert proposal.release.adapter.digest == second.adapter.digest
    assert "put back" in proposal.reasons[0]
    assert project(database, tracking) == []


def test_an_alias_for_a_task_without_champion_is_removed(world: World, database: Database, tracking: str) -> None:
    release = registered(world, 1)
    judged(world, release, "promote", over_head=0.0)
    Tracking(tracking).point(MODEL, "champion", 1)
    (repair,) = project(database, tracking)
    assert (repair.was, repair.now, repair.foreign) == (1, None, True)
    assert Tracking(tracking).alias(MODEL, "champion") is None
    assert history(database, "emails")[0].action == "propose"


def test_a_removed_alias_is_put_back_without_a_proposal(world: World, database: Database, tracking: str) -> None:
    judged(world, registered(world, 1), "promote")
    Tracking(tracking).unpoint(MODEL, "champion")
    (repair,) = project(database, tracking)
    assert (repair.was, repair.now) == (None, 1)
    assert [row.action for row in history(database, "emails")] == ["promote"]


def test_a_version_that_is_gone_does_not_keep_other_tasks_from_their_repair(
    world: World, database: Database, tracking: str
) -> None:
    from mlflow import MlflowClient

    for task in ("calls", "emails"):
        adapter = make_adapter(world(f"train {task}"), task)
        release = register(RegistrySpec(), adapter, make_report(adapter), step=world(f"register {task}"))
        promote(GateSpec(), release, make_report(adapter), step=world(f"promote {task}"))
        Tracking(tracking).unpoint(f"petl-ray.{task}", "champion")
    MlflowClient(tracking).delete_model_version("petl-ray.calls", "1")
    with pytest.raises(PermanentError):
        project(database, tracking)
    assert Tracking(tracking).alias(MODEL, "champion") == 1


def test_people_list_promote_and_roll_back(world: World, database_url: str, tracking: str) -> None:
    first, second, third = (registered(world, seed) for seed in (1, 2, 3))
    judged(world, first, "promote 1")
    judged(world, second, "promote 2", champion=first.adapter)
    judged(world, third, "promote 3", champion=second.adapter, over_champion=-1.0)
    listed = adapters.ls(database_url)
    assert [(line["version"], line["champion"], line["status"]) for line in listed] == [
        (3, False, "refused"), (2, True, "champion"), (1, False, "former"),
    ]  # fmt: skip
    assert "accuracy 0.9000" in listed[0]["headline"]

    by_hand = adapters.promote(database_url, tracking, "emails", 3, actor="ada", reason="The test set was too easy.")
    assert (by_hand["version"], by_hand["previous_version"], by_hand["actor"]) == (3, 2, "ada")
    assert Tracking(tracking).alias(MODEL, "champion") == 3
    assert current("emails", database_url) == third.adapter

    back = adapters.rollback(database_url, tracking, "emails", actor="ada", reason="Complaints.")
    assert (back["action"], back["version"]) == ("rollback", 2)
    assert Tracking(tracking).alias(MODEL, "champion") == 2
    farther = adapters.rollback(database_url, tracking, "emails", to=1, actor="ada", reason="More complaints.")
    assert farther["version"] == 1

    story = adapters.history(database_url, "emails")
    assert [line["action"] for line in story] == ["rollback", "rollback", "promote", "refuse", "promote", "promote"]
    assert adapters.history(database_url, "emails", limit=1) == story[:1]
    assert [line["action"] for line in adapters.why(database_url, "emails", 3)] == ["promote", "refuse"]
    (told, *_) = adapters.why(database_url, "emails")
    assert told["reasons"] == ["More complaints."]
    assert list(told["lineage"].items()) == list(first.about["lineage"].items())
    assert ASKED_BY.items() <= told["lineage"].items()


def test_a_run_does_not_undo_a_rollback(world: World, database_url: str, tracking: str) -> None:
    first, second = registered(world, 1), registered(world, 2)
    judged(world, first, "promote 1")
    judged(world, second, "promote 2", champion=first.adapter)
    adapters.rollback(database_url, tracking, "emails", actor="ada", reason="Complaints.")
    again = judged(world, second, "promote 2 in a later run", champion=first.adapter)
    assert again.status == "refused"
    assert again.reasons[0].startswith("Version 2 was rolled back by ada on ")
    assert "Complaints; `petl-ray adapters promote emails 2" in again.reasons[0]
    assert current("emails", database_url) == first.adapter
    assert Tracking(tracking).alias(MODEL, "champion") == 1
    assert [line["status"] for line in adapters.ls(database_url)] == ["rolled back", "champion"]
    adapters.promote(database_url, tracking, "emails", 2, actor="ada", reason="They were wrong.")
    assert [line["status"] for line in adapters.ls(database_url)] == ["champion", "former"]


def test_a_version_that_was_never_judged_can_be_promoted_from_its_manifest(
    world: World, database_url: str, tracking: str
) -> None:
    judged(world, registered(world, 1), "promote")
    second = registered(world, 2)
    adapters.promote(database_url, tracking, "emails", 2, actor="ada", reason="Trusted.")
    served = current("emails", database_url)
    assert served is not None
    assert served.digest == second.adapter.digest
    assert served.files == second.adapter.files
    assert adapters.why(database_url, "emails")[0]["lineage"] == second.about["lineage"]


def test_what_is_not_ours_is_not_promoted(world: World, database_url: str, tracking: str) -> None:
    from mlflow import MlflowClient

    from petl_ray.errors import AdapterError

    judged(world, registered(world, 1), "promote")
    client = MlflowClient(tracking_uri=tracking, registry_uri=tracking)
    client.create_model_version(MODEL, "s3://elsewhere/model")
    with pytest.raises(AdapterError, match="was not registered by petl-ray"):
        adapters.promote(database_url, tracking, "emails", 2, actor="ada", reason="Why not.")
    source = Tracking(tracking).version(MODEL, 1)
    assert source is not None
    client.create_model_version(MODEL, source.source, tags={ADAPTER_TAG: "0" * 64})
    with pytest.raises(AdapterError, match="its tags say otherwise"):
        adapters.promote(database_url, tracking, "emails", 3, actor="ada", reason="Why not.")


def test_names_that_nobody_knows_are_not_found(world: World, database_url: str, tracking: str) -> None:
    judged(world, registered(world, 1), "promote")
    with pytest.raises(NotFoundError, match="Did you mean 'emails'"):
        adapters.history(database_url, "email")
    with pytest.raises(NotFoundError, match="Did you mean 'emails'"):
        adapters.why(database_url, "email")
    with pytest.raises(NotFoundError, match="Known are emails"):
        adapters.ls(database_url, "nope")
    with pytest.raises(NotFoundError, match="nobody registered it"):
        adapters.promote(database_url, tracking, "emails", 9, actor="ada", reason="Hope.")
    with pytest.raises(NotFoundError, match="Did you mean 'emails'"):
        adapters.rollback(database_url, tracking, "mails", actor="ada", reason="Back.")
    with pytest.raises(NotFoundError, match="it was the first"):
        adapters.rollback(database_url, tracking, "emails", actor="ada", reason="Back.")
    with pytest.raises(PlanError, match="wants to know why"):
        adapters.promote(database_url, tracking, "emails", 1, actor="ada", reason=" ")
