"""Chaos: drivers, workers and rivals killed and stopped for real, on the whole pipeline; nothing may be lost or redone."""
