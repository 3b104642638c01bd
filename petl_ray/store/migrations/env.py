"""Alembic's entry: run the migrations on the connection that `open_database` hands over, in its transaction."""

from alembic import context

from petl_ray.store.migrations import VERSION_TABLE
from petl_ray.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite alters a table by building it anew
)
context.run_migrations()
