"""Bytes and rows that outlive a process: objects named by sha256, records created once, the journal database.

In: local files, bytes, keys, URLs. Out: verified files, the bytes that stand under a key, transactions on the database.
It must not know what the bytes mean: no verb, no step, no adapter, no Ray.
"""

from petl_ray.store.database import Database, open_database
from petl_ray.store.fetch import fetch_files
from petl_ray.store.objects import Store, open_store

__all__ = ["Database", "Store", "fetch_files", "open_database", "open_store"]
