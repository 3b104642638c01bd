"""A replica as its host process holds it: made from plain values, it survives a base that cannot be served.

The class is handed to Ray Serve by `on_ray.py`; nothing here knows that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from petl_ray.errors import AdapterError, PetlRayError, TemporaryError
from petl_ray.serving.names import Group
from petl_ray.serving.refusals import refusal
from petl_ray.serving.spec import ServeSpec

if TYPE_CHECKING:
    from petl_ray.serving.replica import Replica


class BankReplica:
    """A Serve replica around `petl_ray.serving.replica.Replica`; its base is loaded while it is made."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it, on the loop that will answer
        self, group: dict[str, Any], spec: dict[str, Any], services: dict[str, str], layout: str
    ) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported; a server fetches nothing by itself
        from petl_ray.serving.replica import Replica  # torch stays out of gateways and drivers

        self._replica: Replica | None = None
        self._trouble: str | None = None
        self._layout = layout
        parsed = Group.model_validate(group)
        try:
            self._replica = await Replica.start(parsed, ServeSpec.model_validate(spec), services)
        except TemporaryError:
            raise  # Serve tries again
        except PetlRayError as error:
            self._trouble = str(error)  # trying again is in vain: say so to whoever asks, and leave other bases alone

    async def answer(
        self, model: str, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int | None
    ) -> dict[str, Any]:
        """See `Replica.answer`."""
        if self._replica is None:
            return refusal(AdapterError(model, "its base cannot be served", self._trouble or ""))
        return await self._replica.answer(model, texts, pairs, max_tokens)

    async def report(self, wanted: Sequence[str]) -> dict[str, Any]:
        """See `Replica.report`; `layout` says what it was built for, `trouble` why the base cannot be served."""
        if self._replica is None:
            return {"layout": self._layout, "shelf": {}, "trouble": self._trouble}
        return {"layout": self._layout, **await self._replica.report(wanted)}

    async def __del__(self) -> None:
        if (replica := getattr(self, "_replica", None)) is not None:
            await replica.close()
