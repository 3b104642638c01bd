"""What may be asked of serving: where to listen, how many processes, how large a batch and a request may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from petl_ray.spec import NOT_IDENTITY, Spec


class ServeSpec(Spec):
    """One serving application. Rows are cut at the length limit their adapter was trained with, never elsewhere.

    `max_adapters` is the number of slots of one replica; adapters that a name stands for keep theirs, the others give
    way when a slot is needed. `max_waiting_rows` bounds the queue of one replica: what does not fit is told to come
    back (429). `batch_window_ms` is how long an idle replica waits for company for the first row of a batch.
    """

    host: str = Field(default="127.0.0.1", pattern=r"^[A-Za-z0-9.:_-]{1,253}$")
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: Annotated[int, NOT_IDENTITY] = Field(default=1, ge=1, le=1024, description="of each base")
    gateways: Annotated[int, NOT_IDENTITY] = Field(default=1, ge=1, le=256)
    cpus_per_replica: Annotated[int, NOT_IDENTITY] = Field(default=1, ge=1, le=1024, description="cores and threads")
    gpus_per_replica: Annotated[float, NOT_IDENTITY] = Field(default=0.0, ge=0.0, le=64.0)
    max_adapters: int = Field(default=32, ge=1, le=4096)
    max_batch_rows: int = Field(default=32, ge=1, le=4096)
    max_batch_tokens: int = Field(default=16_384, ge=16, le=1 << 22, description="padded tokens of one forward pass")
    batch_window_ms: float = Field(default=2.0, ge=0.0, le=1000.0)
    max_waiting_rows: int = Field(default=1024, ge=1, le=1 << 20)
    max_inputs: int = Field(default=64, ge=1, le=4096, description="inputs of one request")
    max_input_chars: int = Field(default=20_000, ge=1, le=1 << 22, description="characters of one input")
    max_body_bytes: int = Field(default=2 << 20, ge=1024, le=1 << 30)
    max_new_tokens: int = Field(default=128, ge=1, le=4096, description="tokens of one completion")
    request_timeout_s: float = Field(default=30.0, gt=0, le=600)
    follow_s: float = Field(default=2.0, gt=0, le=5, description="seconds between two looks at the names")
    settle_s: Annotated[float, NOT_IDENTITY] = Field(
        default=300.0, gt=0, le=7200, description="how long `deploy` waits for gateways and replicas"
    )
