"""Evaluation: what held-out rows say of one adapter and its rivals.

In: an EvalSpec, the candidate Adapter, a Dataset, the rivals' Adapters in the order of `roles`. Out: a Report with
bootstrap intervals, and `predictions.parquet` as its trace. It must not know how an adapter was trained or found, nor
what a gate will make of the figures.
"""

from petl_ray.artifact import Report
from petl_ray.evaluation.spec import EvalSpec
from petl_ray.verb import Verb, keep_verbs

__all__ = ["EvalSpec", "evaluate"]

evaluate: Verb[Report] = Verb(name="evaluate", version=1, function="petl_ray.evaluation.evaluate:evaluate")

keep_verbs(__name__)
