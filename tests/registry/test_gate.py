"""The gate: what passes, what does not, and that it says why with figures."""

from __future__ import annotations

import pytest

from petl_ray.artifact import Adapter, Interval, Report
from petl_ray.registry.gate import decide, improvement
from petl_ray.registry.spec import GateSpec
from tests.plainstep import PlainStep
from tests.registry.conftest import make_adapter, make_report, sha

GATE = GateSpec(margin=0.03)


@pytest.fixture
def adapter(step: PlainStep) -> Adapter:
    return make_adapter(step)


def test_the_first_candidate_that_beats_the_head_passes(adapter: Adapter) -> None:
    decision = decide(GATE, make_report(adapter, over_head=0.05), None)
    assert decision.status == "champion"
    assert "0.0500 better" in decision.reasons[0]
    assert "lower bound +0.0300 is above 0" in decision.reasons[0]
    assert "no champion yet" in decision.reasons[1]


def test_a_lower_bound_of_zero_over_the_head_is_not_enough(adapter: Adapter) -> None:
    report = make_report(adapter, over_head=0.02)
    assert report.differences["head_only"].low == 0.0
    decision = decide(GATE, report, None)
    assert decision.status == "refused"
    assert "is not above 0" in decision.reasons[0]


def test_a_champion_may_be_missed_by_the_margin_and_no_more(adapter: Adapter, step: PlainStep) -> None:
    champion = make_adapter(step, seed=7)
    near = make_report(adapter, champion=champion, over_champion=-0.0099)
    far = make_report(adapter, champion=champion, over_champion=-0.0101)
    assert decide(GATE, near, champion.digest).status == "champion"
    refused = decide(GATE, far, champion.digest)
    assert refused.status == "refused"
    assert "is below -0.0300, the margin allowed" in refused.reasons[1]


def test_beating_the_champion_does_not_make_up_for_the_head(adapter: Adapter, step: PlainStep) -> None:
    champion = make_adapter(step, seed=7)
    report = make_report(adapter, over_head=0.0, champion=champion, over_champion=0.2)
    assert decide(GATE, report, champion.digest).status == "refused"


def test_the_champion_itself_passes_whatever_the_report_says(adapter: Adapter) -> None:
    decision = decide(GATE, make_report(adapter, over_head=-1.0), adapter.digest)
    assert decision.status == "champion"
    assert "already is the champion" in decision.reasons[0]


def test_a_comparison_with_an_older_champion_does_not_count(adapter: Adapter, step: PlainStep) -> None:
    older = make_adapter(step, seed=7)
    report = make_report(adapter, champion=older, over_champion=0.5)
    decision = decide(GATE, report, sha("somebody else"))
    assert decision.status == "refused"
    assert decision.reasons[1] == (
        f"The champion of emails is {sha('somebody else')[:12]}, but the report compares with {older.digest[:12]}: it rose "
        "after this plan was locked. Run the plan again, and the candidate is measured beside it."
    )


def test_a_champion_that_was_not_compared_with_refuses(adapter: Adapter) -> None:
    decision = decide(GATE, make_report(adapter), sha("champion"))
    assert decision.status == "refused"
    assert "compares with no champion" in decision.reasons[1]


def test_a_champion_that_cannot_be_measured_any_more_is_left_to_a_person(adapter: Adapter) -> None:
    decision = decide(GATE, make_report(adapter), sha("champion"), "its base 0123 is gone")
    assert decision.status == "refused"
    assert decision.reasons[1] == (
        f"The champion of emails, {sha('champion')[:12]}, cannot be measured on these rows: its base 0123 is gone. What was "
        "not measured is not passed. Mend that and run the plan again, or let a person decide: "
        "`petl-ray adapters promote emails` with this version and a reason."
    )


def test_what_was_not_measured_is_not_passed(adapter: Adapter) -> None:
    report = make_report(adapter).model_copy(update={"differences": {}})
    decision = decide(GATE, report, None)
    assert decision.status == "refused"
    assert "neither head_only or base" in decision.reasons[0]


def test_where_less_is_better_the_upper_bound_of_the_difference_decides(adapter: Adapter) -> None:
    def report(low: float, high: float) -> Report:
        change = Interval(value=(low + high) / 2, low=low, high=high)
        scores = {"loss": Interval(value=1.0, low=0.9, high=1.1)}
        update = {"metric": "loss", "mode": "min", "scores": scores, "differences": {"head_only": change}}
        return make_report(adapter).model_copy(update=update)

    better = report(-0.4, -0.1)
    assert improvement(better, "head_only").low == pytest.approx(0.1)
    assert decide(GATE, better, None).status == "champion"
    assert decide(GATE, report(-0.4, 0.01), None).status == "refused"
    assert decide(GATE, report(0.1, 0.4), None).status == "refused"
