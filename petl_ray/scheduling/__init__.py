"""Scheduling: when a run starts, and who waits. Cron ticks, and plans submitted to a cluster that runs elsewhere.

In: a plan's path, a cron line or a cluster's address. Out: runs whose ids follow from schedule and tick, so that firing
twice is harmless. It must not know what a run does.
"""

from petl_ray.scheduling.schedules import Firing, Schedule, add, firings, next_ticks, remove, schedules

__all__ = ["Firing", "Schedule", "add", "firings", "next_ticks", "remove", "schedules"]
