"""What callers notice when servers fail, with pgdbpool and with other pools: ``python -m bench.failover``.

Eight callers, half of them writing and half reading, work on a primary and two standbys. Nobody retries. A *scenario*
does something to the servers, and what the callers met is counted: operations that failed, callers that hang, how long
it took from the moment at which a healthy answer was possible to the first one, and whether the database holds what was
acknowledged.

::

    parent                                              child, one for each peer (or for each of its callers)
    cli -> run -> scenarios: do things to the servers        worker: the callers, on a pool of `peers`
                  stage:     notes what was done and when
                  client:    starts the child, hears  <───── each operation, one line when it has ended
                  figures:   both together, as numbers
                  report, targets

A peer works in a process of its own, so that one that hangs for ever hangs nobody else: the process is ended by its id.
Both processes read the same monotonic clock. What is possible is found out by an `Observer` of the parent, who asks the
server directly, not by the scenario's own idea of it.
"""
