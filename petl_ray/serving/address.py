"""The address that a server listens on."""

from __future__ import annotations

import socket

from petl_ray.errors import ConflictError
from petl_ray.serving.spec import ServeSpec


def authority(spec: ServeSpec) -> str:
    """`host:port` as it stands in a URL."""
    return f"[{spec.host}]:{spec.port}" if ":" in spec.host else f"{spec.host}:{spec.port}"


def refuse_taken_port(spec: ServeSpec) -> None:
    """Raise ConflictError, before anything starts, if nobody can listen on the address."""
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((spec.host, spec.port))
        except OSError as error:
            raise ConflictError(
                "serving.port",
                f"got {authority(spec)}",
                f"nothing can listen there: {error.strerror}",
                "Stop what holds it, or set serving.port to a free one",
            ) from error
