"""Asking a running endpoint over HTTP: what `petl-ray predict` does. Knows the wire and nothing behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx

from petl_ray.errors import (
    AdapterError,
    BaseModelError,
    CapacityError,
    NotFoundError,
    PermanentError,
    PetlRayError,
    PlanError,
    TemporaryError,
)

PAUSES_S = (0.3, 1.0, 2.0)  # a replica that has just died is replaced within some seconds
LONGEST_PAUSE_S = 5.0
_WAITABLE = ("TemporaryError", "QueueFull")
_KINDS: dict[str, type[PetlRayError]] = {
    kind.__name__: kind for kind in (AdapterError, BaseModelError, CapacityError, NotFoundError, PlanError)
}


def predict(
    url: str, task: str, texts: Sequence[str], *, batch: int = 64, timeout_s: float = 60.0
) -> list[dict[str, Any]]:
    """One answer a text, in order: `label`, `score`, `scores`, `truncated` and `provenance`.

    `task` may be `task@digest`. Asking twice is harmless, so busy and unreachable servers are tried again a few times.
    Raises NotFoundError for an unknown task, PlanError for a text that is refused, TemporaryError if nobody answers.
    """
    answers: list[dict[str, Any]] = []
    with httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as client:
        for start in range(0, len(texts), batch):
            body = {"model": task, "inputs": list(texts[start : start + batch])}
            said = _post(client, "/v1/classify", body)
            answers.extend({**output, "provenance": said["provenance"]} for output in said["outputs"])
    return answers


def complete(
    url: str, task: str, prompts: Sequence[str], *, max_tokens: int | None = None, timeout_s: float = 60.0
) -> list[dict[str, Any]]:
    """One greedy completion a prompt: `text`, `tokens`, `finish`, `truncated` and `provenance`. Raises as `predict`."""
    body: dict[str, Any] = {"model": task, "prompt": list(prompts)}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    with httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as client:
        said = _post(client, "/v1/completions", body)
    return [{**output, "provenance": said["provenance"]} for output in said["outputs"]]


def models(url: str, *, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """What is served: one row a name or digest. Raises TemporaryError if no server answers."""
    with httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as client:
        try:
            reply = client.get("/v1/models")
        except httpx.TransportError as error:
            raise _nobody(url, error) from error
    if reply.status_code != 200:
        raise _error(reply)
    return list(reply.json()["models"])


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request. A server that is busy or lost a replica is asked again, an absent one is not."""
    for pause_s in (*PAUSES_S, None):
        try:
            reply = client.post(path, json=body)
            if reply.status_code == 200:
                return dict(reply.json())
            error = _error(reply)
        except httpx.ConnectError as nobody:
            raise _nobody(str(client.base_url), nobody) from nobody
        except httpx.TransportError as lost:
            error = _nobody(str(client.base_url), lost)
        if pause_s is None or not isinstance(error, TemporaryError):
            raise error
        time.sleep(min(max(pause_s, error.delay_s), LONGEST_PAUSE_S))
    raise AssertionError("the last attempt returns or raises")


def _nobody(url: str, error: httpx.TransportError) -> TemporaryError:
    return TemporaryError(
        url, f"no answer ({type(error).__name__})", "no server is running there", "Start one with `petl-ray serve`"
    )


def _error(reply: httpx.Response) -> PetlRayError:
    """The server's refusal as the error it was there; TemporaryError for a failure without words."""
    delay_s = float(reply.headers.get("retry-after", 1))
    try:
        words = reply.json()["error"]
        kind, parts = str(words["kind"]), [str(words[part]) for part in ("what", "found", "why", "do")]
    except (ValueError, KeyError, TypeError):
        kind = "TemporaryError" if reply.status_code >= 500 else "PermanentError"
        parts = [str(reply.url), f"status {reply.status_code}", reply.text[:200], "Look at the server's log"]
    if kind in _WAITABLE:
        return TemporaryError(*parts, delay_s=delay_s)
    return _KINDS.get(kind, PermanentError)(*parts)
