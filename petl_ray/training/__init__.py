"""Training: from prepared rows to a trained adapter over a frozen base.

In go a TrainSpec and a Dataset, out comes an Adapter: weights, configuration, card and golden answers.
This room must not know who asked (a search, a pipeline), where outcomes are kept, or how adapters are served.

`train` stands for three functions: `train.py:train` answers one question in this process, `train.py:train_all` answers
many over one resident base, and `on_ray.py:train` spreads one question over `resources.workers` processes. Whoever
places the work chooses between the first and the last by the number of workers alone; the answer means the same.
"""

from petl_ray.artifact import Adapter
from petl_ray.training.spec import TrainSpec
from petl_ray.verb import Verb, keep_verbs

train: Verb[Adapter] = Verb(
    name="train",
    version=1,
    function="petl_ray.training.train:train",
    packed="petl_ray.training.train:train_all",
    distributed="petl_ray.training.on_ray:train",
)

__all__ = ["TrainSpec", "train"]

keep_verbs(__name__)
