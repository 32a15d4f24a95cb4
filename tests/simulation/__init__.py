"""The pool in a world made up from a number.

Core does no I/O, so all that surrounds it can be replaced: the clock is a queue of events, the network and the servers
are a few attributes, and threads are generators that take turns. From one seed come the settings of a pool, its
callers, and what goes wrong with the servers: they die, freeze, lag, flap, lie about their role, fill up and come back.
After each step every invariant is looked at; at the end the servers get well, and every group has to serve within a
bound that follows from its settings. The same seed is the same run, to the last event::

    python -m tests.simulation --seed 17 --trace     # replay one
    python -m tests.simulation --soak                # all processors, until stopped

Read in this order: ``clock`` (events and tasks), ``servers``, ``network``, ``weather`` (what goes wrong, and when),
``scenario`` (what a seed decides), ``shell`` (what the pool does with one connection), ``keepers`` (the two threading
models), ``monitor``, ``callers``, ``watch`` (the invariants), ``recovery`` (the bound), ``run``.
"""
