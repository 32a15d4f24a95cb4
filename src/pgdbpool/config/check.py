"""The dictionary form, checked whole.

Every key is looked at, every mistake is noted as one line "path: what was expected, what is there", and at the end
either all lines are raised together or the settings are made. Nothing is opened, and no value that could be a secret
gets into a line: words of a fixed choice and numbers are shown, any other text only by its nature.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from pgdbpool.config import keys
from pgdbpool.config.keys import Kind, Unfit, nature
from pgdbpool.config.libpq import libpq_parameters
from pgdbpool.config.settings import EndpointSettings, FrozenMap, GroupSettings, Settings
from pgdbpool.errors import ConfigError, ConfigWarning

__all__ = ["did_you_mean", "load"]


def load(config: Mapping[str, Any] | Settings) -> Settings:
    """Check a configuration and return it as frozen settings. What is `Settings` already is returned as it is.

    Raises `ConfigError` with one line for each mistake. Warns with one `ConfigWarning` about keys of older pools
    that have no effect any more.
    """
    if isinstance(config, Settings):
        return config
    check = _Check()
    settings = check.settings(config)
    if check.retired:
        _warn_retired(check.retired)
    if check.problems or settings is None:
        raise ConfigError(*check.problems)
    return settings


class _Check:
    """One pass over one configuration: collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.retired: list[str] = []

    def note(self, path: str, problem: str) -> None:
        self.problems.append(f"{path}: {problem}")

    # -- the whole --

    def settings(self, config: Any) -> Settings | None:
        if not isinstance(config, Mapping):
            hint = "; for a URL there is load_url" if isinstance(config, str) else ""
            self.note("config", f"expected a dict, got {nature(config)}{hint}")
            return None
        top = self.fields(
            config, "", keys.TOP, other={"database": "db", "databases": "db", "endpoints": "db"}
        )
        endpoints = self.endpoints(config)
        groups = self.groups(config)
        self.known_tags(endpoints, groups)
        if self.problems:
            return None
        return Settings(
            type=top.get("type", "threaded"), db=tuple(e for _, e in endpoints), groups=FrozenMap(groups)
        )

    def fields(
        self, section: Mapping[Any, Any], path: str, kinds: Mapping[str, Kind], other: Mapping[str, str]
    ) -> dict[str, Any]:
        """All fitting values of a section. `other` says how keys that others use are called here."""
        fitting = {}
        for key, value in section.items():
            at = _join(path, key)
            if not isinstance(key, str):
                self.note(path or "config", f"expected strings as keys, got {nature(key)}")
            elif key in keys.RETIRED:
                self.retired.append(key)
            elif key not in kinds:
                self.note(at, _unknown(key, kinds, other))
            elif not (path == "" and key in ("db", "groups")):  # these are looked into on their own
                try:
                    fitting[key] = kinds[key].fit(value)
                except Unfit as unfit:
                    self.note(at, str(unfit))
        return fitting

    # -- endpoints --

    def endpoints(self, config: Mapping[Any, Any]) -> list[tuple[str, EndpointSettings]]:
        """The endpoints, each with its path."""
        if "db" not in config:
            self.note("db", "missing; it says where the database is: a dict, or a list of dicts")
            return []
        db = config["db"]
        entries: list[tuple[str, Any]]
        if isinstance(db, Mapping):
            entries = [("db", db)]
        elif isinstance(db, (list, tuple)):
            entries = [(f"db[{index}]", entry) for index, entry in enumerate(db)]
        else:
            self.note("db", f"expected a dict or a list of dicts, got {nature(db)}")
            return []
        if not entries:
            self.note("db", "expected at least one endpoint, got an empty list")
        endpoints = [(path, self.endpoint(path, entry)) for path, entry in entries]
        good = [(path, endpoint) for path, endpoint in endpoints if endpoint is not None]
        self.duplicates(good)
        return good

    def endpoint(self, path: str, entry: Any) -> EndpointSettings | None:
        before = len(self.problems)
        if not isinstance(entry, Mapping):
            self.note(path, f"expected a dict, got {nature(entry)}")
            return None
        others = {key: f"params.{key}" for key in libpq_parameters()} | keys.RENAMED_ENDPOINT
        others |= {key: f"{key} in a group" for key in keys.GROUP if key not in keys.ENDPOINT}
        fields = self.fields(entry, path, keys.ENDPOINT, others)
        if "host" not in entry:
            self.note(f"{path}.host", "missing; a host name, an address, or the directory of a Unix socket")
        elif "host" in fields:
            self.host(f"{path}.host", fields["host"])
        if "params" in fields:
            fields["params"] = self.params(f"{path}.params", fields["params"])
        if len(self.problems) > before:
            return None
        if "pass" in fields:
            fields["password"] = fields.pop("pass")
        return EndpointSettings(**fields)

    def host(self, path: str, host: str) -> None:
        if "://" in host:
            self.note(path, "expected a host name, got a URL; for a URL there is load_url")
        elif host.startswith(("/", "@")):
            return
        elif "," in host:
            self.note(path, "expected one host, got a list; write one entry of db for each")
        elif host.startswith("[") or host.endswith("]"):
            self.note(path, "expected an address without brackets")
        elif re.search(r"[\s/@]", host):
            self.note(path, "expected a host name, got a string with blanks, / or @ in it")

    def params(self, path: str, params: Mapping[Any, Any]) -> FrozenMap[str]:
        texts = {}
        for key, value in params.items():
            if not isinstance(key, str):
                self.note(path, f"expected strings as keys, got {nature(key)}")
                continue
            at = _join(path, key)
            if problem := _param_problem(key):
                self.note(at, problem)
                continue
            try:
                texts[key] = _param_text(value)
            except Unfit as unfit:
                self.note(at, str(unfit))
        return FrozenMap(texts)

    def duplicates(self, endpoints: Iterable[tuple[str, EndpointSettings]]) -> None:
        seen: dict[object, str] = {}
        for path, endpoint in endpoints:
            address = endpoint.host.lower(), endpoint.params.get("hostaddr"), endpoint.port
            first = seen.setdefault((*address, endpoint.name, endpoint.user), path)
            if first != path:
                self.note(path, f"the same host, port, name and user as {first}; remove one of them")

    # -- groups --

    def groups(self, config: Mapping[Any, Any]) -> dict[str, GroupSettings]:
        if "groups" not in config:
            self.note("groups", 'missing; it names at least one group, such as {"default": {}}')
            return {}
        groups = config["groups"]
        if not isinstance(groups, Mapping):
            self.note("groups", f"expected a dict of groups, got {nature(groups)}")
            return {}
        if not groups:
            self.note("groups", 'expected at least one group, such as {"default": {}}, got an empty dict')
        made = {}
        for name, entry in groups.items():
            if not isinstance(name, str) or not name.strip() or not name.isprintable():
                got = "an empty string" if name == "" else "blanks" if _is_blank(name) else nature(name)
                self.note("groups", f"expected printable, non-empty strings as names of groups, got {got}")
            elif (group := self.group(name, entry)) is not None:
                made[name] = group
        return made

    def group(self, name: str, entry: Any) -> GroupSettings | None:
        before = len(self.problems)
        path = _join("groups", name)
        if not isinstance(entry, Mapping):
            self.note(path, f"expected a dict, got {nature(entry)}")
            return None
        others = {key: f"{key} in db" for key in keys.ENDPOINT if key not in keys.GROUP} | keys.RENAMED_GROUP
        fields = self.fields(entry, path, keys.GROUP, others)
        if len(self.problems) > before:
            return None
        group = GroupSettings(name=name, **fields)
        self.counts(path, group)
        return group

    def counts(self, path: str, group: GroupSettings) -> None:
        for key in ("connection_count", "total_count"):
            most = getattr(group, key)
            if most is not None and group.min_count > most:
                self.note(f"{path}.min_count", f"expected {key} ({most}) or less, got {group.min_count}")

    def known_tags(
        self, endpoints: Iterable[tuple[str, EndpointSettings]], groups: Mapping[str, GroupSettings]
    ) -> None:
        if self.problems:
            return  # an endpoint with another mistake is not there, and its tags would be missed
        known = sorted(frozenset().union(*(endpoint.tags for _, endpoint in endpoints)))
        for name, group in groups.items():
            for tag in sorted(group.tags.difference(known)):
                hint = did_you_mean(tag, known) or f"; tags of endpoints are: {', '.join(known) or 'none'}"
                self.note(f"{_join('groups', name)}.tags", f"no endpoint bears {tag!r}{hint}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ", did you mean x?" or an empty string."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _unknown(key: str, kinds: Mapping[str, Kind], other: Mapping[str, str]) -> str:
    if key in other:
        return f"unknown key, use {other[key]}"
    return "unknown key" + (did_you_mean(key, kinds) or f"; known keys are: {', '.join(kinds)}")


# Decided by the pool itself, connection by connection.
_NOT_PARAMS = {
    "target_session_attrs": "not accepted here; use target_session_attrs in a group",
    "host": "has a key of its own; use host",
    "user": "has a key of its own; use user",
    "port": "has a key of its own; use port",
}


def _param_problem(key: str) -> str:
    """What is wrong with the name of a libpq parameter, or an empty string."""
    if key in _NOT_PARAMS:
        return _NOT_PARAMS[key]
    own = key if key in keys.ENDPOINT else keys.RENAMED_ENDPOINT.get(key)
    if own:
        return f"has a key of its own; use {own}"
    if key not in libpq_parameters():
        hint = did_you_mean(key, libpq_parameters() - keys.ENDPOINT.keys())
        return f"libpq knows no such parameter{hint}"
    return ""


_PARAM = Kind(str, "a string or a whole number", secret=True)


def _param_text(value: Any) -> str:
    """A parameter's value as libpq takes it. Its text is never shown."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int) and abs(value) < 2**63:
        return str(int(value))
    if value == "":
        return ""
    text = _PARAM.fit(value)
    assert isinstance(text, str)
    return text


def _join(path: str, key: object) -> str:
    """`groups.read`, but `groups['a b']`, so that a path can be read without doubt."""
    text = str.__str__(key) if isinstance(key, str) else ""
    if re.fullmatch(r"[\w-]{1,60}", text):
        return f"{path}.{text}" if path else text
    shown = ascii(text if len(text) <= 60 else text[:60] + "...")
    return f"{path}[{shown}]"


def _is_blank(name: object) -> bool:
    return isinstance(name, str) and not name.strip()


def _warn_retired(found: Iterable[str]) -> None:
    text = "; ".join(f"{key} has no effect any more: {keys.RETIRED[key]}" for key in dict.fromkeys(found))
    warnings.warn(text, ConfigWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The stacklevel at which the warning names the user's line, however deep in this package we are."""
    here = os.path.dirname(os.path.dirname(__file__)) + os.sep
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    return level
