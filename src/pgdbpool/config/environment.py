"""What libpq chooses where a configuration says nothing: by its environment (`PGHOST`, ...), a service, or as built.

libpq itself is asked, so that there is no second opinion: it is told to begin a connection that it refuses for a wrong
parameter, before it looks up a name or makes a socket, and then says what it would have used.

Where the servers are is found out once, when the configuration is loaded, since each host is an endpoint of the pool.
What has no part in that (`ssl`, `user`, `name`, `pass`) stays libpq's choice at each connect.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from pgdbpool.config.keys import ENDPOINT, GROUP, Kind, Unfit
from pgdbpool.config.settings import EndpointSettings, FrozenMap, is_secret

__all__ = [
    "Choice",
    "Refused",
    "Unclear",
    "filled",
    "libpq_choice",
    "libpq_parameters",
    "proofs",
    "target_session_attrs",
]


class Refused(Exception):
    """libpq cannot say what it would use: the service is not in its file, say. Bears its words."""


class Unclear(Exception):
    """What libpq chose for a key is of no use."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(words)
        self.key = key


class Choice(NamedTuple):
    """What libpq would use. No secrets are in it."""

    values: Mapping[str, str]
    """By libpq's keywords; what is empty is not there."""
    socket: str
    """The host where none is named: the directory of a Unix socket, or `localhost`."""
    service: str | None

    def source(self, keyword: str) -> str | None:
        """What the choice goes back to: `PGHOST`, `service "app"`. None: libpq chose as it was built."""
        variable, built_in = _known()[keyword]
        environment = os.environ.get(variable) if variable else None
        if self.service and self.values.get(keyword) not in (None, environment or built_in):
            return f'service "{self.service}"'
        return variable if environment else None


@cache
def _known() -> dict[str, tuple[str | None, str | None]]:
    """All connection parameters of the installed libpq: the variable of the environment, and the built-in value."""
    # Here and not above: importing the configuration should not load a driver.
    from psycopg import pq

    return {
        each.keyword.decode(): (
            each.envvar.decode() if each.envvar else None,
            each.compiled.decode() if each.compiled else None,
        )
        for each in pq.Conninfo.get_defaults()
    }


def libpq_parameters() -> frozenset[str]:
    """The names of all connection parameters that the installed libpq knows."""
    return frozenset(_known())


# What others depend on: a service has everything, `sslrootcert=system` is `sslmode=verify-full`.
_TOLD = ("service", "sslrootcert", "hostaddr")


def libpq_choice(params: Mapping[str, Any]) -> Choice:
    """What libpq would use now, beside these parameters. Raises `Refused`."""
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    told = {key: params[key] for key in _TOLD if params.get(key)}
    # With a password it need not look for one.
    asked = pq.PGconn.connect_start(make_conninfo("", **told, gssencmode="none at all", password="-").encode())
    try:
        found = {each.keyword.decode(): each.val.decode("utf-8", "replace") for each in asked.info if each.val}
        if "password" not in found:  # it gave up before it had put all together
            raise Refused(asked.error_message.decode("utf-8", "replace").strip())
        values = {key: text for key, text in found.items() if not is_secret(key)}
    finally:
        asked.finish()
    return Choice(values, _socket(), told.get("service") or os.environ.get("PGSERVICE"))


@cache
def _socket() -> str:
    from psycopg import pq

    asked = pq.PGconn.connect_start(b"host='' hostaddr='' port='' gssencmode='none at all' password=-")
    try:
        return asked.host.decode() or "localhost"
    finally:
        asked.finish()


def target_session_attrs(endpoints: Iterable[Mapping[str, Any]]) -> tuple[str, str | None]:
    """For groups that have none: libpq's choice at these endpoints, given their `params`, and where it comes from.

    None: nothing but libpq itself. Raises `Unclear`.
    """
    found: dict[str, str | None] = {}
    for params in endpoints:
        try:
            choice = libpq_choice(params)
        except Refused:  # libpq will say the same at each connect
            continue
        found[choice.values.get("target_session_attrs", "any")] = choice.source("target_session_attrs")
    if len(found) > 1:
        raise Unclear("target_session_attrs", f"missing, and the services name several: {', '.join(sorted(found))}")
    for attrs, source in found.items():
        return str(_fitting(GROUP, "target_session_attrs", attrs, source)), source
    return "any", None


def proofs(endpoint: EndpointSettings) -> tuple[str | None, bool]:
    """libpq's `sslmode` at an endpoint, and whether `require_auth` is said; None: libpq cannot say."""
    try:
        values = libpq_choice(endpoint.params).values
    except Refused:
        values = {}
    required = bool(endpoint.params.get("require_auth") or values.get("require_auth"))
    return endpoint.ssl or values.get("sslmode"), required


def filled(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of one entry of `db`, with what libpq chooses for those that are absent; one for each host.

    Raises `Unclear`.
    """
    params: Mapping[str, str] = fields.get("params", {})
    try:
        choice = libpq_choice(params)
    except Refused as refused:
        if "host" not in fields:
            raise Unclear("host", f"missing, and libpq cannot choose one: {refused}") from None
        return [dict(fields)]  # libpq will say the same at each connect
    sources: dict[str, str] = {}
    common = {**_numbers(fields, choice, sources), **fields}
    places = _hosts(fields, choice, sources)
    ports = _ports(fields, choice, sources)
    if len(ports) == 1:
        ports *= len(places)
    if len(ports) != len(places):
        raise Unclear("port", f"libpq chooses {len(ports)} ports for {_count(len(places))}")
    entries = []
    for place, port in zip(places, ports, strict=True):
        entry = {**common, "host": place[0], "port": port, "chosen": FrozenMap(sources)}
        if place[1]:
            entry["params"] = FrozenMap({**params, "hostaddr": place[1]})
        entries.append(entry)
    return entries


def _hosts(fields: Mapping[str, Any], choice: Choice, sources: dict[str, str]) -> list[tuple[str, str]]:
    """Each host with its `hostaddr`, which may be empty."""
    if "host" in fields:
        return [(fields["host"], "")]  # the address that `params` give it is there; one of the environment is not its
    keyword = "host" if "host" in choice.values else "hostaddr"
    if keyword in choice.values and (source := choice.source(keyword)):
        sources["host"] = source
    hosts = choice.values.get("host", "").split(",")
    if "hostaddr" not in choice.values:
        return [(host.strip() or choice.socket, "") for host in hosts]
    addresses = choice.values["hostaddr"].split(",")
    if hosts == [""]:
        hosts *= len(addresses)
    if len(hosts) != len(addresses):
        raise Unclear("host", f"libpq chooses {len(addresses)} addresses for {_count(len(hosts))}")
    return [
        (host, address) if host and address else (host or address or choice.socket, "")
        for host, address in zip(hosts, addresses, strict=True)
    ]


def _ports(fields: Mapping[str, Any], choice: Choice, sources: dict[str, str]) -> list[int]:
    if "port" in fields:
        return [fields["port"]]
    source = choice.source("port")
    if source:
        sources["port"] = source
    built_in = _known()["port"][1] or "5432"
    return [
        _number("port", text.strip() or built_in, source) for text in choice.values.get("port", built_in).split(",")
    ]


def _numbers(fields: Mapping[str, Any], choice: Choice, sources: dict[str, str]) -> dict[str, Any]:
    """Times and the like, for which this pool has defaults of its own where libpq has none."""
    found: dict[str, Any] = {}
    for key in ("connect_timeout", "keepalives", *_KEEPALIVES):
        text, source = choice.values.get(key), choice.source(key)
        if key in fields or text is None:
            continue
        number = _number(key, text, source, check=False)
        if key == "keepalives":
            found[key] = number != 0
        elif key in _KEEPALIVES:
            found[key] = _fitting(ENDPOINT, key, max(0, number), source)
        elif number > 0:
            found[key] = _fitting(ENDPOINT, key, number, source)
        else:  # libpq would wait for ever; here every wait has an end
            continue
        if source:
            sources[key] = source
    return found


_KEEPALIVES = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")


def _number(key: str, text: str, source: str | None, *, check: bool = True) -> int:
    try:
        number = int(text)
    except ValueError:
        raise Unclear(key, f"expected a whole number, got something else from {source}") from None
    return int(_fitting(ENDPOINT, key, number, source)) if check else number


def _fitting(kinds: Mapping[str, Kind], key: str, value: Any, source: str | None) -> Any:
    try:
        return kinds[key].fit(value)
    except Unfit as unfit:
        raise Unclear(key, f"{unfit} from {source}") from None


def _count(hosts: int) -> str:
    return "1 host" if hosts == 1 else f"{hosts} hosts"
