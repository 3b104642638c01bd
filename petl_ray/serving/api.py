"""The HTTP face of a gateway: `/v1/classify`, `/v1/completions`, `/v1/models` and `/healthz`, on FastAPI.

Every answer says what answered it, in its body and in its headers. What is refused is refused in the words
*what: found; why. Do.*, and nothing larger than the limits is read to its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from petl_ray.errors import PlanError
from petl_ray.serving.gateway import Gateway
from petl_ray.serving.refusals import refusal
from petl_ray.serving.spec import ServeSpec

FACTS = ("task", "version", "adapter", "base", "precision", "quantization", "tokenizer", "template")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=200, description="a task, or task@digest")


class Pair(BaseModel):
    """A text and the text it is held against."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    text_pair: str


class ClassifyBody(_Body):
    """Texts to be labelled: `input` for one, `inputs` for many."""

    input: str | Pair | None = None
    inputs: list[str | Pair] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ClassifyBody:
        if (self.input is None) == (self.inputs is None):
            raise ValueError("give either input (one text) or inputs (a list of texts)")
        return self

    @property
    def all(self) -> list[str | Pair]:
        """The inputs as a list."""
        return self.inputs if self.inputs is not None else [self.input] if self.input is not None else []


class CompletionBody(_Body):
    """Prompts to be continued greedily: one or many, each by at most `max_tokens` tokens."""

    prompt: str | list[str]
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=0, description="only greedy decoding is offered")

    @property
    def all(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def build_app(gateway: Gateway) -> FastAPI:
    """The application of one gateway. Interactive pages are left out: they would load scripts from elsewhere."""
    app = FastAPI(title="petl-ray", docs_url=None, redoc_url=None)
    spec = gateway.spec

    @app.post("/v1/classify")
    async def classify(body: ClassifyBody) -> JSONResponse:
        texts = [one if isinstance(one, str) else one.text for one in body.all]
        pairs = [None if isinstance(one, str) else one.text_pair for one in body.all]
        if trouble := _too_much("inputs", [*texts, *(pair or "" for pair in pairs)], len(texts), spec):
            return _refused(refusal(trouble))
        return _said(body.model, await gateway.ask(body.model, texts, pairs, "classification"))

    @app.post("/v1/completions")
    async def completions(body: CompletionBody) -> JSONResponse:
        trouble = _too_much("prompt", body.all, len(body.all), spec)
        if not trouble and (body.max_tokens or 1) > spec.max_new_tokens:
            trouble = PlanError(
                "max_tokens",
                f"got {body.max_tokens}",
                f"one completion has at most {spec.max_new_tokens}",
                "Ask for less",
            )
        if trouble:
            return _refused(refusal(trouble))
        nobody: list[str | None] = [None] * len(body.all)
        return _said(body.model, await gateway.ask(body.model, body.all, nobody, "causal_lm", body.max_tokens))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"models": gateway.models()}

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        health = gateway.health()
        return JSONResponse(health, status_code=503 if health["status"] == "starting" else 200)

    @app.exception_handler(RequestValidationError)
    async def odd(request: Request, error: RequestValidationError) -> JSONResponse:
        return _refused(refusal(_in_our_words(error)))

    app.add_middleware(BodyLimit, limit_bytes=spec.max_body_bytes)
    return app


class BodyLimit:
    """ASGI middleware: a body that is, or says it is, larger than `limit_bytes` is answered 413 and not read on."""

    def __init__(self, app: App, limit_bytes: int) -> None:
        self._app, self._limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then hand it on as one piece."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", True
        size = int(said) if said.isdigit() else 0
        while more and size <= self._limit_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more, size = message.get("more_body", False), max(size, len(body))
        if size > self._limit_bytes:
            large = PlanError(
                "body", "too large", f"at most {self._limit_bytes} bytes are read", "Send fewer inputs at a time"
            )
            await _refused(refusal(large, status=413))(scope, receive, send)
            return
        pieces = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return pieces.pop() if pieces else await receive()

        await self._app(scope, replay, send)


def _too_much(what: str, texts: Sequence[str], count: int, spec: ServeSpec) -> PlanError | None:
    if not 1 <= count <= spec.max_inputs:
        return PlanError(what, f"got {count}", f"one request has 1 to {spec.max_inputs}", "Split the request")
    if (longest := max(len(text) for text in texts)) > spec.max_input_chars:
        return PlanError(
            what, f"got one of {longest} characters", f"one input has at most {spec.max_input_chars}", "Shorten it"
        )
    return None


def _said(model: str, answer: dict[str, Any]) -> JSONResponse:
    if "refused" in answer:
        return _refused(answer)
    facts = answer["provenance"]
    headers = {f"x-petl-{fact}": str(facts[fact]) for fact in FACTS if facts.get(fact) is not None}
    return JSONResponse({"model": model, **answer}, headers=headers)


def _refused(answer: dict[str, Any]) -> JSONResponse:
    """`{"error": {kind, message, what, found, why, do}}` with its status, and Retry-After where waiting helps."""
    words = dict(answer["refused"])
    status, retry_s = words.pop("status"), words.pop("retry_after_s")
    headers = {"retry-after": str(max(1, round(retry_s)))} if retry_s is not None else {}
    return JSONResponse({"error": words}, status_code=status, headers=headers)


def _in_our_words(error: RequestValidationError) -> PlanError:
    """The first thing that is wrong with a body, and how many more there are."""
    first, *more = error.errors()
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    found = repr(first.get("input"))
    found = f"got {found if len(found) <= 80 else found[:77] + '…'}"
    why = str(first["msg"]).removeprefix("Value error, ")
    do = f"Correct it, and {len(more)} more" if more else "Correct it; GET /openapi.json shows what is expected"
    return PlanError(place, found, why, do)
