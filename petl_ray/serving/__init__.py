"""Serving: one frozen base, many adapters, answered side by side in mixed batches.

In: a ServeSpec and Releases; the names in the journal database. Out: an Endpoint whose every answer says what answered.
It must not know how an adapter was trained, why it was promoted, or which run asked.

`deploy` is a verb for `run.do`: it needs a connected Ray and waits until every gateway and replica follows the names.
`on_ray.local_serving` brings the same up on this machine and takes it down again; `client.predict` asks a running one.
"""

from petl_ray.artifact import Endpoint
from petl_ray.serving.spec import ServeSpec
from petl_ray.verb import Verb, keep_verbs

deploy: Verb[Endpoint] = Verb(
    name="deploy", version=1, function="petl_ray.serving.on_ray:deploy", drives_ray=True, transient=True
)

__all__ = ["ServeSpec", "deploy"]

keep_verbs(__name__)
