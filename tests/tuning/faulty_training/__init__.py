"""The miniature training room on machines with faults."""

from petl_ray.verb import Verb

train = Verb(name="train", version=1, function="tests.tuning.faulty_training.train:train")
