"""A training room in miniature: the real protocol, learning curves by formula, real checkpoint files."""

from petl_ray.verb import Verb

train = Verb(name="train", version=1, function="tests.tuning.fake_training.train:train")
