"""Test suites of other pools, run on this one: what their users expect, and where it differs.

make test-psycopg-pool

Nothing of theirs is kept here: `run` fetches it when it runs.
"""
