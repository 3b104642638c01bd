"""Telemetry: what people are shown while work goes on.

In: small facts from whoever works. Out: Events, in order, for whoever watches.
It must not know where events are kept, nor how they are drawn.
"""

from petl_ray.telemetry.events import Event, Sink
from petl_ray.telemetry.outbox import Outbox

__all__ = ["Event", "Outbox", "Sink"]
