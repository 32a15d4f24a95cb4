"""How pgdbpool compares with other pools, side by side, in one run, on a real cluster: ``python -m bench``.

Absolute figures say more about the machine than about the pool, so every measure takes the pools in turn,
many times over, and what counts is the ratio between neighbours in time. `peers.py` says how each pool is
set up and used; each measure is a file of its own; `targets.py` says what pgdbpool has to reach;
`report.py` writes it all down.
"""
