"""Through a pooler: settings of a session where a session has no server of its own.

In transaction mode a pooler gives each transaction any of its connections to the server. What one application SETs
there reaches the next one that gets the connection, and does not hold for the one that has asked for it. Nothing tells
from outside that a pooler is in session mode, so nothing is SET unless the configuration says ``pooler = "session"``.
What holds for one transaction is harmless: it travels with its BEGIN, as one message, and costs no round trip.

The same goes for prepared statements. They are left to the user, who knows whether the pooler keeps track of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .config import EndpointSettings, GroupSettings, session_settings
from .core.endpoint import Endpoint
from .drivers import Driver
from .habitat import say_once

_SAID = {"statement_timeout": "query_timeout", "temp_buffers": "session_tmp_buffer"}


def is_pooled(endpoint: Endpoint) -> bool:
    """Whether a pooler is in between, as far as is known: it is declared, or the last answer has shown it."""
    where: EndpointSettings = endpoint.settings  # type: ignore[assignment]
    return endpoint.pooled or where.pooler is not None


async def make_fit(
    driver: Driver,
    conn: Any,
    where: EndpointSettings,
    how: GroupSettings,
    deadline: float,
    *,
    pooled: bool,
    unsaid: bool,
) -> None:
    """Have a new connection keep to its settings, which were left `unsaid` at its start, or to none of a pooler's."""
    wanted = session_settings(where, how)
    own_server = where.pooler == "session" or not pooled
    if pooled:
        driver.through_pooler(conn, () if own_server else begin_with(wanted), own_server=own_server)
        if not own_server:
            _warn(where, how, wanted)
    if own_server and (pooled or unsaid):
        statements = [f"SET {name} = '{value}'" for name, value in wanted.items()]
        for statement in statements:
            await driver.statement(conn, statement, deadline)
        driver.keep(conn, statements)


def begin_with(wanted: Mapping[str, str]) -> tuple[bytes, ...]:
    """What makes these settings hold for the transaction that has just begun. No statement of it may fail."""
    statements = []
    for name, value in wanted.items():
        if name == "temp_buffers":
            # Refused by a session in which another application has used temporary tables.
            text = f"DO $$BEGIN PERFORM pg_catalog.set_config('{name}', '{value}', true);"
            statements.append(f"{text} EXCEPTION WHEN invalid_parameter_value THEN NULL; END$$".encode())
        else:
            statements.append(f"SET LOCAL {name} = '{value}'".encode())
    return tuple(statements)


def _warn(where: EndpointSettings, how: GroupSettings, wanted: Mapping[str, str]) -> None:
    if not wanted and not how.sqlprepare and how.reset != "state":
        return
    said = [_SAID[name] for name in wanted]
    words = (
        f"{where.label}, group {how.name!r}: a pooler is in between that may give each transaction another session. "
    )
    if said and not how.autocommit:
        words += f"{' and '.join(said)} will be SET LOCAL in each transaction. "
    elif said:
        words += f"{' and '.join(said)} cannot be set in an autocommit group"
        words += ", query_timeout is kept on this side alone. " if "query_timeout" in said else ". "
    if how.sqlprepare:
        words += "What sqlprepare prepares is there in one session only. "
    if how.reset == "state":
        words += 'reset = "state" does nothing, since it would meet the session of another application. '
    words += (
        'Say pooler = "session" at the endpoint if each session has its own; see "With PgBouncer" in the documentation'
    )
    say_once(logging.WARNING, words, of=f"{where.label}, group {how.name!r}: pooler")
