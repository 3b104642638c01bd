"""Every verb of the house, taken at the doors of the rooms: their names, never their meaning."""

from __future__ import annotations

from petl_ray.data import prepare
from petl_ray.evaluation import evaluate
from petl_ray.registry import promote, register
from petl_ray.serving import deploy
from petl_ray.training import train
from petl_ray.tuning import search

VERBS = (prepare, search, train, evaluate, register, promote, deploy)
