"""The gateway: resolves a task to a digest, once and for the whole request, and asks a replica for exactly that digest.

A name moves to a new digest when every replica that stands has proven it; until then the old digest answers. No torch
and no Ray here: replicas are reached through `Backend`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from petl_ray.errors import NotFoundError, PetlRayError, PlanError, TemporaryError
from petl_ray.serving.names import Catalogue, Model, Named, near
from petl_ray.serving.refusals import refusal
from petl_ray.serving.spec import ServeSpec

log = logging.getLogger(__name__)

HURRIED_S = 0.2  # between two looks while something is still loading


class Backend(Protocol):
    """The replicas behind a gateway, by the key of their group."""

    @property
    def groups(self) -> Collection[str]:
        """The keys of all groups that were deployed."""

    async def ask(
        self, group: str, model: str, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int | None
    ) -> dict[str, Any]:
        """`Replica.answer` of any one replica of the group. Raises TemporaryError if none can be reached."""

    async def survey(self, group: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """`Replica.report` of every replica of the group that stands; empty if none does."""


@dataclass(frozen=True)
class View:
    """What a gateway knows at one moment; replaced whole, never changed.

    `routes` says what answers for a task now, `names` what its name means, `behind` why the two differ, `refused` which
    of these will not change by waiting. `shelf` is every digest's state over all replicas.
    """

    names: Mapping[str, Named] = field(default_factory=dict)
    routes: Mapping[str, Named] = field(default_factory=dict)
    behind: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    replicas: Mapping[str, int] = field(default_factory=dict)
    shelf: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    looked: bool = False

    @property
    def settled(self) -> bool:
        """Whether every name answers, or is known never to."""
        return self.looked and all(task in self.routes or task in self.refused for task in self.names)

    @property
    def converged(self) -> bool:
        """Whether what answers is what the names mean."""
        return self.looked and not self.behind


class Gateway:
    """Follows the names and answers requests. `follow` runs for as long as the gateway does."""

    def __init__(self, spec: ServeSpec, catalogue: Catalogue, backend: Backend) -> None:
        self.spec, self.view = spec, View()
        self._catalogue, self._backend = catalogue, backend

    async def follow(self) -> None:
        """Look at the names and the replicas again and again: every `follow_s`, oftener while something is loading."""
        while True:
            try:
                await self.look()
            except PetlRayError as error:
                log.warning("the names cannot be read, so what is served stays: %s", error)
            except Exception:  # a gateway that stops following would serve old versions for ever
                log.exception("following failed; trying again")
            waiting = not self.view.looked or set(self.view.behind) - self.view.refused
            await asyncio.sleep(HURRIED_S if waiting else self.spec.follow_s)

    async def look(self) -> None:
        """One look: read the names, ask every replica, move each task whose new digest is READY everywhere."""
        names, odd = await asyncio.to_thread(self._catalogue.names)
        routes = {task: named for task, named in self.view.routes.items() if task in names or task in odd}
        behind, refused = dict(odd), set(odd)
        reports = await self._survey(names)
        for task, named in names.items():
            reason, final = self._standing(named, reports.get(named.group.key))
            if reason is None:
                routes[task] = named
            else:
                behind[task] = reason
                refused |= {task} if final else set()
        self.view = View(
            names=names,
            routes=routes,
            behind=behind,
            refused=frozenset(refused),
            replicas={group: len(found) for group, found in reports.items()},
            shelf=_together(reports),
            looked=True,
        )

    async def ask(
        self,
        model: str,
        texts: Sequence[str],
        pairs: Sequence[str | None],
        task_type: str,
        max_tokens: int | None = None,
    ) -> dict[str, Any]:
        """`{"outputs", "provenance"}` or `{"refused"}`. The digest is resolved here once: one request, one version."""
        try:
            named = await self._resolve(model)
            if named.adapter.task_type != task_type:
                path = "/v1/classify" if named.adapter.task_type == "classification" else "/v1/completions"
                raise PlanError("model", f"got {model}", f"it is a {named.adapter.task_type} task", f"Ask {path}")
            asked = self._backend.ask(named.group.key, named.model, texts, pairs, max_tokens)
            return await asyncio.wait_for(asked, self.spec.request_timeout_s)
        except TimeoutError:
            late = TemporaryError("request", f"no answer within {self.spec.request_timeout_s:g} s", do="Send it again")
            return refusal(late, status=504)
        except PetlRayError as error:
            return refusal(error)

    def models(self) -> list[dict[str, Any]]:
        """One row a name, then one for every other adapter that still answers by its digest."""
        view = self.view
        rows = [self._row(task, named) for task, named in sorted(view.names.items())]
        listed = {row["adapter"] for row in rows}
        for digest, entry in sorted(view.shelf.items()):
            if digest not in listed and entry["state"] == "READY":
                rows.append({"id": f"{entry['task']}@{digest}", "adapter": digest, "named": False, **entry})
        return rows

    def health(self) -> dict[str, Any]:
        """Status, whether all has converged, what answers for each task, and why anything is behind."""
        view = self.view
        status = "starting" if not view.settled else "ready" if view.converged else "following"
        return {
            "status": status,
            "converged": view.converged,
            "adapters": {task: named.digest for task, named in sorted(view.routes.items())},
            "behind": dict(sorted(view.behind.items())),
            "refused": sorted(view.refused),
            "replicas": dict(view.replicas),
        }

    async def _resolve(self, text: str) -> Named:
        wanted = Model.parse(text)
        if wanted.digest is not None:
            named = await self._catalogue.resolve(wanted)
            if named.group.key in self._backend.groups:
                return named
            raise NotFoundError("model", f"got {text}", "no replica holds the base it was trained for", "Deploy again")
        view = self.view
        if wanted.task in view.routes:
            return view.routes[wanted.task]
        if not view.looked:
            raise TemporaryError("gateway", "still starting", do="Send it again")
        if wanted.task in view.behind:
            raise TemporaryError("model", f"got {text}", f"it does not answer yet: {view.behind[wanted.task]}")
        raise NotFoundError("model", f"got {text}", "no task of that name is served", near(wanted.task, view.names))

    async def _survey(self, names: Mapping[str, Named]) -> dict[str, list[dict[str, Any]]]:
        wanted: dict[str, list[str]] = {group: [] for group in self._backend.groups}
        for named in names.values():
            wanted.setdefault(named.group.key, []).append(named.digest)
        groups = [group for group in wanted if group in self._backend.groups]
        found = await asyncio.gather(*(self._backend.survey(group, wanted[group]) for group in groups))
        return dict(zip(groups, found, strict=True))

    def _standing(self, named: Named, reports: list[dict[str, Any]] | None) -> tuple[str | None, bool]:
        """(why it cannot answer yet or None, whether waiting is in vain)."""
        if reports is None:
            return "no replica holds the base it was trained for; deploy again", True
        if not reports:
            return "no replica answers", False
        if trouble := next((report["trouble"] for report in reports if report.get("trouble")), None):
            return str(trouble), True
        entries = [report["shelf"].get(named.digest) for report in reports]
        broken = next((entry for entry in entries if entry and entry["state"] == "BROKEN"), None)
        if broken:
            return str(broken["reason"]), True
        if all(entry and entry["state"] == "READY" for entry in entries):
            return None, False
        delays = [entry["reason"] for entry in entries if entry and entry.get("reason")]
        return str(delays[0]) if delays else "loading", False

    def _row(self, task: str, named: Named) -> dict[str, Any]:
        adapter, view = named.adapter, self.view
        routed = view.routes.get(task)
        state = view.shelf.get(named.digest, {}).get("state", "LOADING")
        return {
            "id": task,
            "adapter": named.digest,
            "named": True,
            "task": task,
            "task_type": adapter.task_type,
            "version": named.version,
            "state": state if task not in view.refused else "BROKEN",
            "reason": view.behind.get(task),
            "answering": routed.digest if routed else None,
            "method": adapter.method,
            "base": adapter.base.digest,
            "precision": adapter.precision,
            "quantization": adapter.quantization,
            "labels": list(adapter.labels),
        }


def _together(reports: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Every digest's state over all replicas of its group: READY only where it is READY in each."""
    shelf: dict[str, dict[str, Any]] = {}
    for found in reports.values():
        for digest in {digest for report in found for digest in report["shelf"]}:
            entries = [report["shelf"].get(digest, {"state": "LOADING", "reason": None}) for report in found]
            worst = min(entries, key=lambda entry: ("BROKEN", "DRAINING", "LOADING", "READY").index(entry["state"]))
            known = next((entry for entry in entries if "task" in entry), {"task": None, "version": None})
            shelf[digest] = {
                "task": known["task"],
                "version": known["version"],
                "state": worst["state"],
                "reason": worst["reason"],
            }
    return shelf
