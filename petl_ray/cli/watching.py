"""A run as it happens: one line for each step that starts or ends, and what is under way below them on a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.live import Live
from rich.text import Text

from petl_ray.cli.screen import err
from petl_ray.telemetry import Event

_PLAIN_EVERY_S = 10.0
_MARKS = {"hit": ("=", "dim"), "done": ("+", "green"), "failed": ("x", "red"), "parked": (".", "yellow")}


class Watch:
    """An event sink that draws. Steps that end scroll by on stderr; those under way stay below on a terminal.

    Where stderr is no terminal, a step under way says a line every ten seconds.
    """

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._lock = threading.Lock()
        self._active: dict[str, tuple[str, str, float]] = {}  # step -> label, what it says, since
        self._labels: dict[str, str] = {}
        self._said_s: dict[str, float] = {}
        self._live = Live(console=err, refresh_per_second=4, transient=True, get_renderable=self._draw)
        self._drawing = err.is_terminal and not silent
        self.counts = {"hit": 0, "done": 0, "failed": 0}
        self.verbs: set[str] = set()
        self._began_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._drawing:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawing:
            self._live.stop()

    def told(self) -> str:
        """What the run did, in a sentence or two."""
        text = f"{self.counts['done']} steps computed, {self.counts['hit']} found"
        text += f", {self.counts['failed']} failed" if self.counts["failed"] else ""
        text += f", {time.monotonic() - self._began_s:.0f} s."
        idle = not self.verbs & {"search", "train"} and self.counts["hit"] and not self.counts["failed"]
        return f"Searched and trained nothing: every outcome was known. {text}" if idle else text

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        with self._lock:
            room, _, what = event.event.partition(".")
            if room == "step":
                self._step(event, what)
            elif room == "run":
                self._run(event, what)
            elif event.step is not None and event.step in self._active:
                label, _, since = self._active[event.step]
                said = progress(event.event, event.facts)
                self._active[event.step] = (label, said, since)
                if event.event == "search.resumed":
                    self._line(" ", "", f"{label}  {said}")
                self._speak(event.step)

    def _step(self, event: Event, what: str) -> None:
        step, facts = event.step or "", event.facts
        label = self._labels.setdefault(step, str(facts.get("label", step[:12])))
        if what == "start":
            self._active[step] = (label, str(facts.get("why") or ""), time.monotonic())
            self._said_s[step] = time.monotonic()
            self._line(">", "cyan", f"{label}  ({facts['why']})" if facts.get("why") else label)
        elif what == "waiting":
            self._line(".", "yellow", f"{label}: somebody else computes it; waiting for the outcome")
        elif what in _MARKS:
            self._active.pop(step, None)
            if what in self.counts:
                self.counts[what] += 1
            if what == "done":
                self.verbs.add(str(facts.get("verb")))
            mark, style = _MARKS[what]
            said = {"hit": "found, nothing to do", "failed": str(facts.get("error", "failed")), "parked": "parked"}
            took = f"{facts['seconds']:.1f} s" if what == "done" and facts.get("seconds") is not None else ""
            self._line(mark, style, f"{label}  {said.get(what, took)}")

    def _run(self, event: Event, what: str) -> None:
        if what in ("start", "resume"):
            self._line("*", "bold", f"run {event.run_id} {'resumes' if what == 'resume' else 'starts'}")
        elif what == "retry":
            self._line("~", "yellow", f"{event.facts.get('error')} Trying again in {event.facts.get('delay_s')} s.")

    def _speak(self, step: str) -> None:
        if self._drawing or time.monotonic() - self._said_s.get(step, 0.0) < _PLAIN_EVERY_S:
            return
        self._said_s[step] = time.monotonic()
        label, said, _ = self._active[step]
        self._line(" ", "", f"{label}  {said}")

    def _line(self, mark: str, style: str, text: str) -> None:
        if not self._silent:
            err.print(Text(f"{mark} ", style=style).append(text, style="" if style != "dim" else "dim"), soft_wrap=True)

    def _draw(self) -> Text:
        now = time.monotonic()
        lines = [f"  {label}  {said}  {now - since:.0f} s" for label, said, since in list(self._active.values())]
        return Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis")


def progress(event: str, facts: Mapping[str, Any]) -> str:
    """One progress event in words."""
    told = {name: _number(value) for name, value in facts.items() if isinstance(value, int | float | str)}
    if event == "train.step":
        return "step {step} of {steps}, loss {loss}, {tokens_per_s} tokens/s, {eta_s} s to go".format_map(_Known(told))
    if event == "train.validated":
        return "step {step}: validation {metric} {score}".format_map(_Known(told))
    if event == "search.rung":
        verb = "replays" if facts.get("replayed") else "reached"
        return f"trial {{trial}} {verb} rung {{rung}}: {{score}}, best at the furthest rung {{best}}".format_map(
            _Known(told)
        )
    if event == "search.resumed":
        return "goes on: {recorded} rungs of {trials} trials are recorded".format_map(_Known(told))
    if event == "search.packs":
        return "{up} of {asked} packs are up".format_map(_Known(told))
    if event in ("search.engine", "train.slots"):
        return "{why}; {calibration}".format_map(_Known(told))
    if event == "evaluate.rows":
        return "{done} of {total} rows".format_map(_Known(told))
    return ", ".join(f"{name} {value}" for name, value in told.items() if name not in ("label", "key"))


class _Known(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _number(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
