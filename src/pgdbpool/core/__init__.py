"""Decisions only: no I/O, no threads, no sleeping.

The clock is an argument (``now``, seconds that only grow), the random source and the lock are passed in.
A shell (``sync.py``, ``aio.py``) asks, does what the answer says, and reports what happened.

Read in this order: ``evidence`` (what can be known), ``endpoint``, ``lane`` (and its slots), ``balance``, ``group``
(checkout and return), ``routes``, ``plan`` (when to open a connection), ``topology`` (what follows from evidence),
``stats``.
"""
