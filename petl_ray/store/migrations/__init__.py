"""How the journal's schema came to be, step by step; `HEAD` names the newest step, as a test checks."""

HEAD = "0001"
VERSION_TABLE = "petl_ray_version"  # a name of our own: MLflow may share the server and has `alembic_version`
