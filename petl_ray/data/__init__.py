"""Rows in, a Dataset out: reads, checks, cleans and splits labelled text.

In: a DataSpec (`lock()` makes it from a plan's DataSource). Out: a Dataset with its data card.
It must not know tokenizers, models, methods or Ray.
"""

from petl_ray.artifact import Dataset
from petl_ray.data.locking import lock
from petl_ray.data.spec import Columns, DataSource, DataSpec, Split
from petl_ray.verb import Verb, keep_verbs

prepare: Verb[Dataset] = Verb(name="prepare", version=1, function="petl_ray.data.prepare:prepare")

__all__ = ["Columns", "DataSource", "DataSpec", "Split", "lock", "prepare"]

keep_verbs(__name__)
