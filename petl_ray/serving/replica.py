"""One replica: an engine, its shelf and its batcher, following the names. Knows no transport; Ray is one of several.

answer(model, inputs, max_tokens)  -> an answer with its provenance, or a refusal; never raises for one request
report(wanted)                     -> what stands on the shelf; looks at the names at once if something is missing
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from petl_ray.errors import AdapterError, NotFoundError, PetlRayError, TemporaryError
from petl_ray.serving.adapters import Entry, Shelf
from petl_ray.serving.batcher import Batcher, Limits
from petl_ray.serving.engine import Engine, Row
from petl_ray.serving.names import Catalogue, Group, Model, Named
from petl_ray.serving.refusals import refusal
from petl_ray.serving.spec import ServeSpec
from petl_ray.store import fetch_files, open_store
from petl_ray.tasks import Encoded

log = logging.getLogger(__name__)


class Replica:
    """Answers for one group of adapters. Make it with `await Replica.start(...)` inside the event loop that uses it."""

    def __init__(
        self, group: Group, spec: ServeSpec, engine: Engine, catalogue: Catalogue, fetch: Callable[[Named], Path]
    ):
        self.group, self.engine = group, engine
        self._spec, self._catalogue = spec, catalogue
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._shelf = Shelf(engine, fetch, self._device, spec.max_adapters)
        limits = Limits(spec.max_batch_rows, spec.max_batch_tokens, spec.max_waiting_rows, spec.batch_window_ms / 1000)
        self._batcher: Batcher[Row, torch.Tensor] = Batcher(
            engine.forward, lambda row: row.encoded.length_tokens, self._device, limits
        )
        self._look = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, group: Group, spec: ServeSpec, services: dict[str, str]) -> Replica:
        """Load the base, then follow the names from now on. Raises what loading the base raises."""
        engine = await asyncio.to_thread(Engine, group, spec.max_adapters, spec.cpus_per_replica)
        store, cache = open_store(services["store"]), Path(services["home"]) / "cache" / "adapters"
        replica = cls(
            group,
            spec,
            engine,
            Catalogue(services["database"]),
            lambda named: fetch_files(store, named.adapter.files, cache),
        )
        with contextlib.suppress(TemporaryError):
            await replica.look()
        replica._follower = asyncio.create_task(replica._follow())
        return replica

    async def look(self) -> None:
        """Read the names once and start loading what they stand for. Raises TemporaryError if the database is away."""
        known, _ = await asyncio.to_thread(self._catalogue.names)
        self._shelf.pin(named for named in known.values() if named.group.key == self.group.key)

    async def report(self, wanted: Sequence[str]) -> dict[str, Any]:
        """What stands on the shelf by digest. If any of `wanted` is missing, the names are looked at at once."""
        shelf = self._shelf.report()
        if any(digest not in shelf for digest in wanted):
            self._look.set()
        return {"shelf": shelf, "batches": self._batcher.batches, "rows": self._batcher.rows}

    async def answer(
        self, model: str, texts: Sequence[str], pairs: Sequence[str | None] | None = None, max_tokens: int | None = None
    ) -> dict[str, Any]:
        """`{"outputs": […], "provenance": {…}}` by exactly the adapter `task@digest`, or `{"refused": {…}}`.

        Classification gives label, score and scores per text; a language model text, tokens and finish.
        """
        try:
            named = await self._catalogue.resolve(Model.parse(model))
            if named.group.key != self.group.key:  # where its base was read from bears no identity
                raise NotFoundError("model", f"got {model}", "its base is not served by this replica", "Deploy again")
            async with self._shelf.hold(named) as entry:
                return await self._answer(entry, texts, pairs or [None] * len(texts), max_tokens)
        except PetlRayError as error:
            return refusal(error)

    async def close(self) -> None:
        """Answer what waits, then stop following and let the device thread go."""
        if self._follower is not None:
            self._follower.cancel()
        await self._batcher.close()
        await self._shelf.close()
        self._device.shutdown(wait=False, cancel_futures=True)

    async def _answer(
        self, entry: Entry, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int | None
    ) -> dict[str, Any]:
        card, slot = entry.prepared.card, entry.slot
        assert slot is not None, "an adapter that is held has a slot"
        rows = await asyncio.to_thread(self.engine.encode, card, texts, pairs)
        if self.group.task_type == "causal_lm":
            limit = min(max_tokens or self._spec.max_new_tokens, self._spec.max_new_tokens)
            outputs = list(await asyncio.gather(*(self._complete(entry, slot, row, limit) for row in rows)))
        else:
            given = await self._forward(entry, [Row(slot, row) for row in rows])
            outputs = [_labelled(card.labels, logits, row) for logits, row in zip(given, rows, strict=True)]
        return {"outputs": outputs, "provenance": self.engine.provenance(entry.named, card)}

    async def _complete(self, entry: Entry, slot: int, prompt: Encoded, limit: int) -> dict[str, Any]:
        """Greedy decoding, one row of a mixed batch per token: each request joins and leaves the batch as it likes.

        Without a cache of keys and values each token costs a pass over the whole row, which suits short completions.
        """
        end, tokens = self.engine.base.tokenizer.eos_token_id, list(prompt.input_ids)
        limit = min(limit, entry.prepared.card.max_length - len(tokens))
        finish = "length"
        for _ in range(limit):
            [logits] = await self._forward(entry, [Row(slot, Encoded(prompt.id, tuple(tokens), None))])
            if (token := int(logits.argmax())) == end:
                finish = "stop"
                break
            tokens.append(token)
        made = tokens[len(prompt.input_ids) :]
        text = self.engine.base.tokenizer.decode(made, skip_special_tokens=True)
        return {"text": text, "tokens": len(made), "finish": finish, "truncated": prompt.truncated}

    async def _forward(self, entry: Entry, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Logits of rows of one adapter; one that gives something other than numbers is taken out of service."""
        given = await self._batcher.submit(rows)
        if not all(bool(torch.isfinite(logits).all()) for logits in given):
            broken = AdapterError(entry.named.model, "answered NaN or infinity", "that is no answer", "Train it again")
            await self._shelf.fail(entry, broken)
            raise broken
        return given

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), self._spec.follow_s)
            self._look.clear()
            try:
                await self.look()
            except PetlRayError as error:
                log.warning("the names cannot be read, so what is served stays: %s", error)


def _labelled(labels: Sequence[str], logits: torch.Tensor, row: Encoded) -> dict[str, Any]:
    """The label of the largest logit and softmax probabilities for all."""
    scores = logits.double().softmax(-1).tolist()
    best = max(range(len(labels)), key=scores.__getitem__)
    named = dict(zip(labels, scores, strict=True))
    return {"label": labels[best], "score": scores[best], "scores": named, "truncated": row.truncated}
