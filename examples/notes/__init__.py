"""The example application: notes in one table, through the four groups `read`, `write`, `transaction` and `batch`.

The same routes for every server and framework. What they do with the pool is in `work.py`. Which server runs which of
them, and by which command, is in `../rows.toml`.
"""
