"""The model card of a registered version, in Markdown: what it is, what it was measured to do, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petl_ray.artifact import Adapter, Interval, Report
from petl_ray.registry.spec import RegistrySpec


def model_card(spec: RegistrySpec, adapter: Adapter, report: Report, lineage: Mapping[str, str]) -> str:
    """The card's text; it says nothing that was not measured or handed in."""
    parts = [
        _front_matter(adapter),
        f"# {adapter.task}",
        _what(adapter),
        "## Measured",
        _measured(report),
        "## Made from",
        _table(("what", "which"), _made_from(spec, adapter, lineage)),
        "## Limits",
        _limits(adapter, report),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(adapter: Adapter) -> str:
    lines = [
        "---",
        "library_name: petl-ray",
        "tags:",
        "- adapter",
        f"- {adapter.method}",
        f"- {adapter.task_type}",
        "---",
    ]
    return "\n".join(lines)


def _what(adapter: Adapter) -> str:
    share = adapter.trained_parameters / max(adapter.base_parameters, 1)
    labels = f"It tells {len(adapter.labels)} labels apart: {', '.join(adapter.labels)}." if adapter.labels else ""
    text = (
        f"An adapter of kind `{adapter.method}` ({adapter.task_type}) beside a frozen base model: "
        f"{adapter.trained_parameters:,} trained parameters, {share:.2%} of the base's {adapter.base_parameters:,}; "
        f"{adapter.size_bytes:,} bytes. The base model is not included."
    )
    return f"{text} {labels}".rstrip()


def _measured(report: Report) -> str:
    intro = f"On {report.rows:,} held-out rows. Brackets are bootstrap intervals."
    scores = [(metric, _interval(scored)) for metric, scored in report.scores.items()]
    text = f"{intro}\n\n{_table(('metric', 'value'), scores)}"
    if report.rivals:
        rivals = [
            (role, _interval(scored), _interval(report.differences[role]) if role in report.differences else "")
            for role, scored in report.rivals.items()
        ]
        heads = ("rival", report.metric, "this adapter minus rival, paired")
        better = "higher" if report.mode == "max" else "lower"
        text += f"\n\nOn the same rows, in {report.metric} ({better} is better):\n\n{_table(heads, rivals)}"
    return text


def _made_from(spec: RegistrySpec, adapter: Adapter, lineage: Mapping[str, str]) -> list[tuple[str, ...]]:
    quantized = "" if adapter.quantization == "none" else f", {adapter.quantization}"
    return [
        ("adapter", f"`{adapter.digest}`"),
        ("base", f"`{adapter.base.digest}` ({adapter.precision}{quantized})"),
        ("licence of the data", spec.data_license),
        *((name.replace("_", " "), f"`{value}`") for name, value in lineage.items() if name != "base"),
    ]


def _limits(adapter: Adapter, report: Report) -> str:
    lines = [
        f"- It answers right only on its own base, `{adapter.base.digest[:12]}…`, in {adapter.precision}; "
        "another base, precision or quantization is another model.",
        "- The intervals speak of rows like the held-out ones. Other sources, languages or times were not measured.",
        "- What the base model learned from its own data, biases included, is still in it.",
    ]
    if adapter.labels:
        lines.append("- Every text gets one of the labels above, also a text that fits none of them.")
    if report.rows < 200:
        lines.append(f"- {report.rows} held-out rows are few: differences smaller than the intervals mean nothing.")
    return "\n".join(lines)


def _interval(scored: Interval) -> str:
    return f"{scored.value:.4f} [{scored.low:.4f}, {scored.high:.4f}] at {scored.level * 100:g} %"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
