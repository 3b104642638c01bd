"""The registry: which adapter a task's name means, and why.

In: an Adapter and its Report. Out: a Release, registered in MLflow and judged by the gate. The promotion rows of the
journal database are the truth about names; MLflow's aliases are their projection. It must not know how an adapter was
made, nor who serves it.

`register` and `promote` are verbs for `run.do`. `current(task, database_url) -> Adapter | None` is the champion of the
day, for a plan to lock.
"""

from petl_ray.artifact import Adapter, Release
from petl_ray.registry.spec import GateSpec, RegistrySpec
from petl_ray.verb import Verb, keep_verbs

__all__ = ["GateSpec", "RegistrySpec", "current", "promote", "register"]

register: Verb[Release] = Verb(name="register", version=1, function="petl_ray.registry.register:register")
promote: Verb[Release] = Verb(name="promote", version=1, function="petl_ray.registry.promote:promote")


def current(task: str, database_url: str) -> Adapter | None:
    """The adapter that `task` means today; None if the task has no champion.

    Raises TemporaryError if the database is away.
    """
    from petl_ray.registry.promotions import champion
    from petl_ray.store import open_database

    standing = champion(open_database(database_url), task)
    return standing.release.adapter if standing else None


keep_verbs(__name__)
