"""Which champions can be measured again, and what the gate says of the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from petl_ray.artifact import Adapter
from petl_ray.models import BaseSpec, resolve
from petl_ray.registry.measurable import why_lost, why_unmeasurable
from petl_ray.registry.promote import promote
from petl_ray.registry.promotions import champion, why
from petl_ray.registry.spec import GateSpec
from petl_ray.spec import Pinned
from petl_ray.store import Database
from tests.plainstep import PlainStep
from tests.registry.conftest import make_adapter, make_release, make_report


@pytest.fixture
def base(tmp_path: Path, tiny_bert: Path) -> Pinned:
    """A base in a directory of its own."""
    return resolve(BaseSpec(source=str(shutil.copytree(tiny_bert, tmp_path / "base")), precision="fp32")).pinned


def on(adapter: Adapter, base: Pinned) -> Adapter:
    return adapter.model_copy(update={"base": base})


def test_a_base_is_lost_when_it_is_gone_or_holds_other_bytes(base: Pinned, tmp_path: Path) -> None:
    assert why_lost(base) is None
    (tmp_path / "base" / "config.json").write_text("{}")
    assert why_lost(base) == f"its base {base.digest[:12]} is gone ({tmp_path}/base: it holds another one now)"
    shutil.rmtree(tmp_path / "base")
    assert why_lost(base) == f"its base {base.digest[:12]} is gone ({tmp_path}/base: no such directory)"


def test_other_labels_or_another_base_do_not_hinder(base: Pinned, step: PlainStep) -> None:
    champion, here = on(make_adapter(step), base), make_adapter(step).base
    assert why_unmeasurable(champion, "classification", here) is None
    assert why_unmeasurable(make_adapter(step), "classification", here) is None  # the plan's own base is there
    assert why_unmeasurable(champion, "causal_lm", here) == (
        "it is a classification adapter and the task is causal_lm now"
    )


def test_a_candidate_beside_a_champion_on_a_lost_base_is_refused_and_the_row_says_what_to_do(
    base: Pinned, world: Callable[[str], PlainStep], step: PlainStep, database: Database
) -> None:
    first, second = (make_release(step, version).model_copy(update={"about": {}}) for version in (1, 2))  # no MLflow
    first = first.model_copy(update={"adapter": on(first.adapter, base)})
    assert promote(GateSpec(), first, make_report(first.adapter), step=world("first")).status == "champion"
    late = promote(GateSpec(), second, make_report(second.adapter), step=world("late"))
    assert late.status == "refused"
    assert "rose after this plan was locked" in late.reasons[1]
    shutil.rmtree(base.uri)
    refused = promote(GateSpec(), second, make_report(second.adapter), step=world("second"))
    assert refused.status == "refused"
    assert "is gone" in refused.reasons[1]
    assert "`petl-ray adapters promote emails`" in refused.reasons[1]
    assert why(database, "emails", 2)[0].reasons == refused.reasons
    measured = make_report(second.adapter, champion=first.adapter)
    assert promote(GateSpec(), second, measured, step=world("third")).status == "champion"
    standing = champion(database, "emails")
    assert standing is not None
    assert standing.version == 2
