"""Rows in, a Dataset out: reads, checks, cleans and splits labelled text.

In: a DataSpec (`lock()` makes it from a plan's DataSource). Out: a Dataset with its data card.
It must not know tokenizers, models, methods or Ray.
"""

from petl_ray.artifact import Dataset
from petl_ray.data.locking import lock
from petl_ray.data.prepare import prepare as _prepare
from petl_ray.data.spec import Columns, DataSource, DataSpec, Split
from petl_ray.verb import Verb

# The module `petl_ray.data.prepare` is imported above, before its name is taken by the verb: imported later, the module
# would replace the verb in this namespace.
prepare: Verb[Dataset] = Verb(name="prepare", version=1, function=f"{_prepare.__module__}:{_prepare.__name__}")

__all__ = ["Columns", "DataSource", "DataSpec", "Split", "lock", "prepare"]
