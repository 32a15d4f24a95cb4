"""The URL form: `postgresql://user:pw@h1:5432,h2:5432/db?target_session_attrs=primary&connect_timeout=3`.

As libpq reads it; a driver that SQLAlchemy and others put into the scheme (`postgresql+psycopg://`) is of no concern
here. There are two differences. The hosts (where there are none, libpq's choice) become endpoints of the
pool, so they share the load instead of being tried in order. And the query takes the pool's keys too: those of an
endpoint apply to each host, those of a group to the group `default`, `type` to the whole; everything else is a
libpq parameter.

What is wrong is noted, and the rest is read all the same, so that all mistakes are told at once. A malformed URL is
never quoted back: where the password is in it cannot be known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

from pgdbpool.config import keys
from pgdbpool.config.check import Judged, did_you_mean, judged
from pgdbpool.config.environment import libpq_parameters
from pgdbpool.config.named import is_name
from pgdbpool.config.settings import Settings

__all__ = ["judged_url", "load_url"]

_SCHEME = re.compile(r"postgres(?:ql)?(?:\+[A-Za-z0-9_]+)?://")
# libpq's words for what has a key of its own here
_SPELLINGS = {"dbname": "name", "password": "pass", "sslmode": "ssl"}
# One value for all hosts, or one for each
_PER_HOST = ("port", "priority", "weight")


def load_url(url: str, *, groups: Mapping[str, Any] | None = None) -> Settings:
    """Read and check a URL.

    Without `groups` there is one group, `default`, with `autocommit` on and what the URL says of it. With
    `groups` (as in the dictionary form) these are the groups, and what the URL says is the default of each.

    Raises `ConfigError`; no line of it has a part of the URL that could be a secret.
    """
    found = judged_url(url, groups=groups)
    del url, groups
    return found.settings()


def judged_url(url: str, *, groups: Mapping[str, Any] | None = None) -> Judged:
    """The same without raising."""
    malformed: list[str] = []
    try:
        config, written = _parse(url, malformed)
    except _Malformed as unreadable:
        return Judged(None, (f"url: {unreadable}",))
    own_groups = config.pop("group")
    if groups is None:
        config["groups"] = {"default": own_groups}
    elif isinstance(groups, Mapping):
        config["groups"] = {
            name: {**own_groups, **group} if isinstance(group, Mapping) else group for name, group in groups.items()
        }
    else:
        config["groups"] = groups
    found = judged(config)
    lines = [f"url: {text}" for text in malformed] + _as_written(found.problems, written, groups is None)
    return Judged(None if lines else found.found, tuple(dict.fromkeys(lines)))


class _Malformed(Exception):
    """A part of the URL cannot be read; the text goes after "url: "."""


@contextmanager
def _noting(malformed: list[str]) -> Iterator[None]:
    """Note that a part cannot be read, and go on with the next."""
    try:
        yield
    except _Malformed as error:
        malformed.append(str(error))


def _parse(url: str, malformed: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The dictionary form (with one `group` for `groups`), and how its keys are spelled in the URL.

    Notes what is wrong in `malformed`. Raises _Malformed where nothing can be read.
    """
    authority, path, query = _parts(url)
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    endpoint: dict[str, Any] = {}
    for key, text in {"user": user, "pass": password, "name": path}.items():
        with _noting(malformed):
            if text:
                endpoint[key] = _name(text) if key == "name" else _decode(text)
    params: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {"top": {}, "endpoint": endpoint, "group": {}, "params": params}
    written: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        with _noting(malformed):
            _sort_in(*_pair(pair), sections, written)
    each = _hosts(hosts, endpoint, malformed)
    if "," in params.get("hostaddr", "") or ("hostaddr" in params and len(each) > 1):
        with _noting(malformed):
            _spread("hostaddr", params.pop("hostaddr"), each)
    db = []
    for own in each:
        own_params = params | ({"hostaddr": own.pop("hostaddr")} if "hostaddr" in own else {})
        db.append({**endpoint, **own, **({"params": own_params} if own_params else {})})
    return {**sections["top"], "db": db, "group": sections["group"]}, written


def _parts(url: str) -> tuple[str, str, str]:
    """Login and hosts, name of the database, and query; all of them still percent-encoded."""
    if not isinstance(url, str):
        raise _Malformed(f"expected a string, got {keys.nature(url)}")
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise _Malformed("expected postgresql://user:password@host:port/database")
    before, _, query = url[scheme.end() :].partition("?")
    authority, _, path = before.partition("/")
    if "@" not in authority and "@" in path + query:
        raise _Malformed("an @ after the host; in a password write / as %2F and ? as %3F, elsewhere @ as %40")
    return authority, path, query


def _name(path: str) -> str:
    if "/" in path:
        raise _Malformed("the name of the database has a / in it; write it as %2F")
    return _decode(path)


def _decode(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise _Malformed("a % that is not followed by two hexadecimal digits; write a % itself as %25")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeError:
        decoded = "\0"
    if "\0" in decoded:
        raise _Malformed("what is percent-encoded is not valid UTF-8 text")
    return decoded


def _pair(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key or "=" in value:
        raise _Malformed("expected key=value, joined by &, after the ?; in a value write = as %3D and & as %26")
    return _decode(key), _decode(value)


def _sort_in(key: str, text: str, sections: dict[str, dict[str, Any]], written: dict[str, str]) -> None:
    """Put one pair of the query where it belongs."""
    own = _SPELLINGS.get(key, key)
    if own in keys.ENDPOINT and own != "params":
        section, kind = sections["endpoint"], keys.ENDPOINT[own]
    elif own in keys.GROUP:
        section, kind = sections["group"], keys.GROUP[own]
    elif own == "type" or own in keys.RETIRED:
        section, kind = sections["top"], keys.TOP["type"]
    elif own in libpq_parameters():
        section, kind = sections["params"], None
    else:
        raise _Malformed(_unknown(key))
    if own in section:
        raise _Malformed(f"{key}: given twice")
    if kind is not None and kind.named and is_name(text):
        raise _Malformed(f"{key}: a URL cannot name a callable; give it in groups")
    written[own] = key
    if key == "ssl" and text == "true":
        text = "require"  # what other drivers write, and libpq understands
    section[own] = text if kind is None or own in _PER_HOST else _value(text, kind)


def _unknown(key: str) -> str:
    if key == "params":
        return "params: unknown parameter; write the parameters of libpq by their own names"
    known = keys.ENDPOINT.keys() | keys.GROUP.keys() | libpq_parameters() | {"type"}
    shown = key if re.fullmatch(r"\w{1,60}", key) else "a key"
    return f"{shown}: unknown parameter{did_you_mean(key, known - {'params'})}"


_FLAGS = dict.fromkeys(("1", "true", "on", "yes"), True) | dict.fromkeys(("0", "false", "off", "no"), False)


def _value(text: str, kind: keys.Kind) -> Any:
    """The text as the type that the key wants. What cannot be one stays text, for `load` to complain of."""
    readers: dict[Any, Callable[[str], Any]] = {
        bool: lambda text: _FLAGS.get(text.lower(), text),
        int: _whole,
        float: _number,
        list[str]: lambda text: text.split(","),
    }
    return readers[kind.type](text) if kind.type in (bool, int, float, list[str]) else text


def _whole(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[-+]?[0-9]{1,20}", text) else text


def _number(text: str) -> float | str:
    whole = _whole(text)
    if isinstance(whole, int):
        return whole
    return float(text) if re.fullmatch(r"[-+]?[0-9]{0,20}\.[0-9]{1,20}", text) else text


def _hosts(authority: str, endpoint: dict[str, Any], malformed: list[str]) -> list[dict[str, Any]]:
    """What each host has of its own. Takes it out of `endpoint`, where the query put it.

    One that cannot be read has another in its place, which is never used.
    """
    in_query = endpoint.pop("host", None)
    each: list[dict[str, Any]] = []
    if authority and in_query is not None:
        malformed.append("host: given twice, after the // and after the ?")
    if authority or in_query is None:
        texts = authority.split(",")
        for number, text in enumerate(texts):
            each.append({"host": f"{number}.invalid"})
            with _noting(malformed):
                each[-1] = _address(text, several=len(texts) > 1)
    elif in_query:
        each = [{"host": text} for text in in_query.split(",")]
    else:
        malformed.append("host: expected a host, got nothing; without it libpq chooses")
        each = [{"host": "0.invalid"}]
    for key in _PER_HOST:
        if key in endpoint:
            with _noting(malformed):
                _spread(key, endpoint.pop(key), each)
    return each


def _address(text: str, *, several: bool) -> dict[str, Any]:
    bracketed = re.fullmatch(r"\[([^\[\]]+)\](?::(.*))?", text)
    host, port = bracketed.groups() if bracketed else (text.partition(":")[0], text.partition(":")[2])
    if not bracketed and ":" in (port or ""):
        raise _Malformed("a host with several colons; write an IPv6 address in brackets, as [::1]:5432")
    if not host and several:
        raise _Malformed("an empty host")
    if re.search(r"[\[\]]", host):
        raise _Malformed("a bracket without its counterpart around an IPv6 address")
    place = {"host": _decode(host)} if host else {}
    if not port:
        return place
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        # Not shown: a password with a / that is not percent-encoded ends up here.
        raise _Malformed("expected ports from 1 to 65535; in a password write / as %2F, ? as %3F and @ as %40")
    return {**place, "port": int(port)}


def _spread(key: str, text: str, each: list[dict[str, Any]]) -> None:
    kind = keys.ENDPOINT.get(key)
    values = [_value(part, kind) if kind else part for part in text.split(",")]
    if len(values) == 1 and kind:  # but not one address for servers with different names
        values *= len(each)
    if len(values) != len(each):
        one = "one value, or one" if kind else "one"
        raise _Malformed(f"{key}: expected {one} for each of the {len(each)} hosts, got {len(values)}")
    for own, value in zip(each, values, strict=True):
        if key in own:
            raise _Malformed(f"{key}: given twice, after the host and after the ?")
        own[key] = value


def _as_written(problems: tuple[str, ...], written: Mapping[str, str], groups_too: bool) -> list[str]:
    """The lines with a URL's paths: `db[1].ssl: ...` becomes `url: sslmode: ...`, once for all hosts."""
    where = r"db\[\d+\]\.(?:params\.)?" + (r"|groups\.default\." if groups_too else "")
    lines = []
    for line in problems:
        found = re.match(rf"(?:{where}|(?=type:))(\w+)", line)
        if found:
            line = f"url: {written.get(found[1], found[1])}{line[found.end() :]}"
        lines.append(line)
    return list(dict.fromkeys(lines))
