"""Keeps other libraries' chatter out of sight. Imported before any of them."""

from __future__ import annotations

import logging
import os
import warnings

_WORLD = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def hush() -> None:
    """Set the environment for this process and its children; what the user has set stands."""
    for name, value in _WORLD.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in ("alembic", "mlflow", "ray", "httpx", "botocore", "bitsandbytes", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)
