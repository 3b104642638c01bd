"""Pipelines: which rooms, in which order. Each is a plain function of a durable run and a locked plan."""
