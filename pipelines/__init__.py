"""Pipelines: which rooms, in which order. Each is a plain function of a durable run and a locked plan."""

PIPELINES = {"adapt": "pipelines.adapt:adapt", "retrain": "pipelines.retrain:retrain"}
