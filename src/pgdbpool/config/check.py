"""The dictionary form, checked whole.

Every key is looked at, every mistake is noted as one line "path: what was expected, what is there", and at
the end either all lines are raised together or the settings are made. Nothing is opened. No value that could
be a secret gets into a line: words of a fixed choice and numbers are shown, other text only by its nature.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pgdbpool.config import keys
from pgdbpool.config.environment import Unclear, filled, libpq_parameters, target_session_attrs
from pgdbpool.config.keys import Kind, Unfit, nature
from pgdbpool.config.settings import (
    EndpointSettings,
    FrozenMap,
    GroupSettings,
    MonitorSettings,
    Settings,
    StatusSettings,
)
from pgdbpool.config.typed import ConfigDict
from pgdbpool.errors import ConfigError, ConfigWarning

__all__ = ["Judged", "did_you_mean", "judged", "load"]


@dataclass(frozen=True, slots=True)
class Judged:
    """Settings, or what is wrong with the configuration.

    A configuration may have a password in it, and an error's traceback has the variables of all functions that it
    passes through. So these judge it, drop it, and only then ask for the settings.
    """

    found: Settings | None
    problems: tuple[str, ...] = ()

    def settings(self) -> Settings:
        """Raises `ConfigError`."""
        if self.found is None:
            raise ConfigError(*self.problems)
        return self.found


def load(config: Mapping[str, Any] | ConfigDict | Settings) -> Settings:
    """Check a configuration and return it as frozen settings. `Settings` are returned as they are.

    Raises `ConfigError` with one line for each mistake. Warns with one `ConfigWarning` about keys of older
    pools that have no effect any more.
    """
    found = judged(config)
    del config
    return found.settings()


def judged(config: Mapping[str, Any] | ConfigDict | Settings) -> Judged:
    """The same without raising."""
    if isinstance(config, Settings):
        return Judged(config)
    check = _Check()
    settings = check.whole(config)
    if settings is not None and check.retired:
        _warn_retired(check.retired)
    return Judged(settings, tuple(check.problems))


class _Check:
    """One pass over one configuration. Notes what is wrong; makes settings only of what has no mistake."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.retired: list[str] = []
        self.with_role: set[str] = set()  # groups with a `target_session_attrs` of their own

    def note(self, path: str, problem: str) -> None:
        self.problems.append(f"{path}: {problem}")

    def whole(self, config: Any) -> Settings | None:
        if not isinstance(config, Mapping):
            hint = "; for a URL there is load_url" if isinstance(config, str) else ""
            self.note("config", f"expected a dict, got {nature(config)}{hint}")
            return None
        fields = self.fields(config, "", keys.TOP, _OTHERS_ON_TOP)
        if "db" not in config:
            self.note("db", "missing; it says where the database is: a dict, or a list of dicts")
        if "groups" not in config:
            self.note("groups", 'missing; it names at least one group, such as {"default": {}}')
        endpoints = self.endpoints(fields["db"]) if "db" in fields else {}
        groups = self.groups(fields["groups"]) if "groups" in fields else {}
        if not self.problems:
            groups = self.chosen_by_role(groups, endpoints)
        monitor = self.monitor(fields.get("monitor", True))
        status = self.status(fields.get("status", False))
        if not self.problems:  # else the tags of an endpoint with another mistake would be missed
            self.tags(endpoints.values(), groups.values())
        if self.problems:
            return None
        return Settings(
            type=fields.get("type", "threaded"),
            monitor=monitor,
            status=status,
            db=tuple(endpoints.values()),
            groups=FrozenMap(groups),
        )

    def monitor(self, section: Mapping[Any, Any] | bool) -> MonitorSettings | None:
        if isinstance(section, bool):
            return MonitorSettings() if section else None
        return MonitorSettings(**self.fields(section, "monitor", keys.MONITOR, {}))

    def status(self, section: Mapping[Any, Any] | bool) -> StatusSettings | None:
        if isinstance(section, bool):
            return StatusSettings() if section else None
        fields = self.fields(section, "status", keys.STATUS, {})
        if not re.fullmatch(keys.STATUS_NAME, fields.get("name", "x"), re.ASCII):
            self.note("status.name", "expected up to 60 letters, digits, - and _, the first a letter or digit")
        if not os.path.isabs(fields.get("directory") or "/"):
            self.note("status.directory", "expected a path that begins with /")
        return StatusSettings(**fields)

    def fields(
        self, section: Mapping[Any, Any], path: str, kinds: Mapping[str, Kind], others: Mapping[str, str]
    ) -> dict[str, Any]:
        """The fitting values of a section. `others` says what to write for keys that do not belong there."""
        fitting = {}
        for key, value in section.items():
            if not isinstance(key, str):
                self.note(path or "config", f"expected strings as keys, got {nature(key)}")
            elif key in keys.RETIRED:
                self.retired.append(key)
            elif key not in kinds:
                self.note(_join(path, _harmless(key)), _unknown(key, kinds, others))
            else:
                try:
                    fitting[key] = kinds[key].fit(value)
                except Unfit as unfit:
                    self.note(_join(path, key), str(unfit))
        return fitting

    # -- endpoints --

    def endpoints(self, db: Mapping[Any, Any] | list[Any]) -> dict[str, EndpointSettings]:
        """The endpoints by their paths."""
        if isinstance(db, Mapping):
            entries: dict[str, Any] = {"db": db}
        else:
            entries = {f"db[{index}]": entry for index, entry in enumerate(db)}
        if not entries:
            self.note("db", "expected at least one endpoint, got an empty list")
        endpoints = {}
        for path, entry in entries.items():
            several = self.endpoint(path, entry)
            for number, endpoint in enumerate(several):
                # The environment or a service may name several hosts.
                endpoints[path if len(several) == 1 else f"{path} (host {number + 1})"] = endpoint
        self.duplicates(endpoints)
        return endpoints

    def endpoint(self, path: str, entry: Any) -> list[EndpointSettings]:
        before = len(self.problems)
        if not isinstance(entry, Mapping):
            self.note(path, f"expected a dict, got {nature(entry)}")
            return []
        fields = self.fields(entry, path, keys.ENDPOINT, _others_in_endpoint())
        if problem := _host_problem(fields.get("host") or ""):
            self.note(f"{path}.host", problem)
        if "://" in (fields.get("name") or ""):
            self.note(f"{path}.name", "expected the name of a database, got a URL; for a URL there is load_url")
        if fields.get("pass_env") is not None:
            self.pass_env(path, fields)
        if "params" in fields:
            fields["params"] = self.params(f"{path}.params", fields["params"])
            weak = fields.get("ssl") not in (None, "verify-full")
            if weak and fields["params"].get("sslrootcert") == "system":
                self.note(f"{path}.ssl", "expected verify-full beside sslrootcert = system; or leave ssl out")
        if len(self.problems) > before:
            return []
        fields.pop("pass_env", None)
        if "pass" in fields:
            fields["password"] = fields.pop("pass")
        try:
            return [EndpointSettings(**each) for each in filled(fields)]
        except Unclear as unclear:
            self.note(f"{path}.{unclear.key}", str(unclear))
            return []

    def pass_env(self, path: str, fields: dict[str, Any]) -> None:
        """Put the password that `pass_env` leads to into the fields."""
        where = f"{path}.pass_env"
        if fields.get("pass") is not None:
            self.note(where, "expected pass or pass_env, not both")
            return
        # Its value is never shown: it may be the password itself, in the wrong key.
        given = os.environ.get(fields["pass_env"]) if keys.is_variable(fields["pass_env"]) else None
        if not keys.is_variable(fields["pass_env"]):
            self.note(where, "expected the name of an environment variable, such as SHOP_DB_PASSWORD")
        elif given is None:
            self.note(where, "the environment variable that it names is not set")
        elif not given:
            self.note(where, "the environment variable that it names is empty")
        else:
            try:
                fields["pass"] = keys.ENDPOINT["pass"].fit(given)
            except Unfit:
                self.note(where, "the environment variable that it names has no valid Unicode in it")

    def params(self, path: str, params: Mapping[Any, Any]) -> FrozenMap[str]:
        texts = {}
        for key, value in params.items():
            if not isinstance(key, str):
                self.note(path, f"expected strings as keys, got {nature(key)}")
            elif problem := _param_problem(key):
                self.note(_join(path, _harmless(key)), problem)
            else:
                try:
                    texts[key] = keys.param_text(value)
                except Unfit as unfit:
                    self.note(_join(path, key), str(unfit))
        if "," in texts.get("hostaddr", ""):
            self.note(f"{path}.hostaddr", "expected one address, got several; write one entry of db for each")
        return FrozenMap(texts)

    def duplicates(self, endpoints: Mapping[str, EndpointSettings]) -> None:
        seen: dict[object, str] = {}
        for path, endpoint in endpoints.items():
            address = endpoint.host.lower(), endpoint.params.get("hostaddr"), endpoint.port
            first = seen.setdefault((*address, endpoint.name, endpoint.user), path)
            if first != path:
                self.note(path, f"the same host, port, name and user as {first}; remove one of them")

    # -- groups --

    def groups(self, groups: Mapping[Any, Any]) -> dict[str, GroupSettings]:
        if not groups:
            self.note("groups", 'expected at least one group, such as {"default": {}}, got an empty dict')
        made = {}
        for name, entry in groups.items():
            if not isinstance(name, str):
                self.note("groups", f"expected strings as names of groups, got {nature(name)}")
            elif not name.strip() or not name.isprintable():
                self.note("groups", "expected a non-empty, printable name for each group")
            elif (group := self.group(name, entry)) is not None:
                made[name] = group
        return made

    def group(self, name: str, entry: Any) -> GroupSettings | None:
        before = len(self.problems)
        path = _join("groups", name)
        if not isinstance(entry, Mapping):
            self.note(path, f"expected a dict, got {nature(entry)}")
            return None
        fields = self.fields(entry, path, keys.GROUP, _OTHERS_IN_GROUP)
        if len(self.problems) > before:
            return None
        if "target_session_attrs" in fields:
            self.with_role.add(name)
        group = GroupSettings(name=str.__str__(name), **fields)
        for key in ("connection_count", "total_count"):
            most = getattr(group, key)
            if most is not None and group.min_count > most:
                self.note(f"{path}.min_count", f"expected {key} ({most}) or less, got {group.min_count}")
        return group

    def chosen_by_role(
        self, groups: Mapping[str, GroupSettings], endpoints: Mapping[str, EndpointSettings]
    ) -> dict[str, GroupSettings]:
        """The groups, with libpq's `target_session_attrs` where they have none of their own."""
        own = self.with_role
        if own.issuperset(groups):
            return dict(groups)
        try:
            attrs, source = target_session_attrs(endpoint.params for endpoint in endpoints.values())
        except Unclear as unclear:
            for name in groups.keys() - own:
                self.note(f"{_join('groups', name)}.{unclear.key}", str(unclear))
            return dict(groups)
        if source is None:
            return dict(groups)
        given = {"target_session_attrs": attrs, "chosen": FrozenMap({"target_session_attrs": source})}
        return {
            name: group if name in own else msgspec.structs.replace(group, **given) for name, group in groups.items()
        }

    def tags(self, endpoints: Iterable[EndpointSettings], groups: Iterable[GroupSettings]) -> None:
        known = sorted(frozenset().union(*(endpoint.tags for endpoint in endpoints)))
        for group in groups:
            for tag in sorted(group.tags.difference(known)):
                hint = did_you_mean(tag, known) or f"; tags of endpoints are: {', '.join(known) or 'none'}"
                self.note(f"{_join('groups', group.name)}.tags", f"no endpoint bears {tag!r}{hint}")


# -- sentences --

# Where a key belongs that is known, but not in this place.
_IN_DB = {key: f"{key} in db" for key in keys.ENDPOINT if key not in keys.GROUP}
_IN_GROUP = {key: f"{key} in a group" for key in keys.GROUP if key not in keys.ENDPOINT}
_OTHERS_IN_GROUP = _IN_DB | keys.RENAMED_GROUP
_OTHERS_ON_TOP = _IN_DB | _IN_GROUP | {"database": "db", "databases": "db", "endpoints": "db"}


def _others_in_endpoint() -> dict[str, str]:
    params = {key: f"params.{key}" for key in libpq_parameters()}
    return params | keys.RENAMED_ENDPOINT | _IN_GROUP


def _unknown(key: str, kinds: Mapping[str, Kind], others: Mapping[str, str]) -> str:
    if key in others:
        return f"unknown key, use {others[key]}"
    return "unknown key" + (did_you_mean(key, kinds) or f"; known keys are: {', '.join(kinds)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean x?`, or an empty string if nothing is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _host_problem(host: str) -> str:
    """Why this is not one host, or an empty string."""
    if "://" in host:
        return "expected a host name, got a URL; for a URL there is load_url"
    if host.startswith(("/", "@")):
        return ""
    if "," in host:
        return "expected one host, got several; write one entry of db for each"
    if "[" in host or "]" in host:
        return "expected an address without brackets"
    if re.search(r"[\s/@]", host):
        return "expected a host name, got a string with blanks, / or @ in it"
    return ""


def _param_problem(key: str) -> str:
    """Why this libpq parameter cannot be among `params`, or an empty string."""
    if key == "target_session_attrs":  # decided by the pool, group by group
        return "not accepted here, use target_session_attrs in a group"
    own = keys.RENAMED_ENDPOINT.get(key, key)
    if own in keys.ENDPOINT:
        return f"has a key of its own, use {own}"
    if key not in libpq_parameters():
        hint = did_you_mean(key, libpq_parameters() - keys.ENDPOINT.keys())
        return f"libpq knows no such parameter{hint}"
    return ""


def _join(path: str, key: str) -> str:
    """`groups.read`, but `groups['a b']`: a path that can be read without doubt."""
    if re.fullmatch(r"[\w-]{1,60}", key):
        return f"{path}.{key}" if path else key
    return f"{path}[{key if len(key) <= 60 else key[:60] + '...'!r}]"


def _harmless(key: str) -> str:
    """An unknown key as it may be shown: what looks like more than a name could have a value in it."""
    return key if re.fullmatch(r"[\w .-]{0,60}", key) else "..."


# -- the warning --


def _warn_retired(found: Iterable[str]) -> None:
    text = "; ".join(f"{key} has no effect any more: {keys.RETIRED[key]}" for key in dict.fromkeys(found))
    warnings.warn(text, ConfigWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The stacklevel at which a warning of our caller names the user's line, however deep we are."""
    here = os.path.dirname(os.path.dirname(__file__)) + os.sep
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    return level + 1
