"""The gate: may this candidate become the champion? A pure function of the report and of who is champion now.

Version 1 reads paired bootstrap intervals only: the lower bound of the candidate's improvement must lie above 0 over
the yardstick, and at least -margin over the champion, re-scored on the same rows. What was not measured is not passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from petl_ray.artifact import Interval, Report
from petl_ray.registry.spec import ALIAS, GateSpec


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why, in full sentences with figures."""

    status: Literal["champion", "refused"]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    passed: bool
    sentence: str


def decide(spec: GateSpec, report: Report, champion_digest: str | None, unmeasurable: str | None = None) -> Decision:
    """Judge the candidate of `report`; `champion_digest` is the adapter that the name means now, if any.

    `unmeasurable` says why that champion cannot be measured again, if so. A candidate that already is the champion
    passes without a comparison.
    """
    if champion_digest == report.adapter_digest:
        return Decision("champion", (f"Adapter {champion_digest[:12]} already is the champion of {report.task}.",))
    findings = [_over_yardstick(spec, report)]
    if champion_digest is None:
        findings.append(_Finding(True, f"{report.task} has no champion yet, so there was none to compare with."))
    else:
        findings.append(_over_champion(spec, report, champion_digest, unmeasurable))
    status: Literal["champion", "refused"] = "champion" if all(found.passed for found in findings) else "refused"
    return Decision(status, tuple(found.sentence for found in findings))


def _over_yardstick(spec: GateSpec, report: Report) -> _Finding:
    role = next((name for name in spec.yardsticks if name in report.differences), None)
    if role is None:
        wanted = " or ".join(spec.yardsticks)
        return _Finding(False, f"The report compares with neither {wanted}; what was not measured is not passed.")
    gain = improvement(report, role)
    passed = gain.low > 0
    verdict = "is above 0" if passed else "is not above 0"
    return _Finding(passed, f"{_measured(report, role, gain)}; the lower bound {_figure(gain.low)} {verdict}.")


def _over_champion(spec: GateSpec, report: Report, champion_digest: str, unmeasurable: str | None) -> _Finding:
    scored = report.rival_digests.get(ALIAS)
    if ALIAS not in report.differences or scored != champion_digest:
        return _Finding(False, _not_compared(report, champion_digest, scored, unmeasurable))
    gain = improvement(report, ALIAS)
    passed = gain.low >= -spec.margin
    verdict = "is at least" if passed else "is below"
    bound = f"the lower bound {_figure(gain.low)} {verdict} {_figure(-spec.margin)}, the margin allowed"
    return _Finding(passed, f"{_measured(report, ALIAS, gain)}; {bound}.")


def _not_compared(report: Report, champion_digest: str, scored: str | None, unmeasurable: str | None) -> str:
    compared = f"with {scored[:12]}" if scored else "with no champion"
    if unmeasurable is None:
        return (
            f"The champion of {report.task} is {champion_digest[:12]}, but the report compares {compared}: it rose after "
            "this plan was locked. Run the plan again, and the candidate is measured beside it."
        )
    return (
        f"The champion of {report.task}, {champion_digest[:12]}, cannot be measured on these rows: {unmeasurable}. What "
        "was not measured is not passed. Mend that and run the plan again, or let a person decide: "
        f"`petl-ray adapters promote {report.task}` with this version and a reason."
    )


def improvement(report: Report, role: str) -> Interval:
    """By how much the candidate is better than `role` (positive is better, whichever way the metric points)."""
    change = report.differences[role]
    if report.mode == "max":
        return change
    return Interval(value=-change.value, low=-change.high, high=-change.low, level=change.level)


def _measured(report: Report, role: str, gain: Interval) -> str:
    better = "better" if gain.value >= 0 else "worse"
    return (
        f"On {report.rows} held-out rows {report.metric} is {report.scores[report.metric].value:.4f} against "
        f"{report.rivals[role].value:.4f} of {role}: {abs(gain.value):.4f} {better} "
        f"({gain.level * 100:g} % paired interval {_figure(gain.low)} to {_figure(gain.high)})"
    )


def _figure(value: float) -> str:
    return f"{value + 0.0:+.4f}" if round(value, 4) else "0"
