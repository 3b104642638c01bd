"""The command `petl-ray`: says what the house can do, and holds no logic of its own.

In: words at a terminal. Out: tables, progress, JSON, an exit code. Everything it does is one call into a lower floor.
"""
