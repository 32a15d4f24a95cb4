"""Reads `rows.toml`: what is run, and the pool's configuration for it."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from pgdbpool import sizing
from pgdbpool.config import load as checked

FOLDER = Path(__file__).resolve().parent
PORT = "8000"  # in the commands

GROUPS: dict[str, dict[str, Any]] = {
    "read": {"autocommit": True, "target_session_attrs": "prefer-standby", "query_timeout": 10_000},
    "write": {"autocommit": True, "target_session_attrs": "primary", "query_timeout": 30_000},
    "transaction": {"autocommit": False, "target_session_attrs": "primary", "query_timeout": 30_000},
    "batch": {"autocommit": False, "target_session_attrs": "primary", "query_timeout": 60_000},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One deployment; the fields are explained at the head of `rows.toml`."""

    name: str
    title: str
    model: str
    processes: int
    threads: int
    groups: Mapping[str, int]
    command: str
    stop: str
    reload: str = ""
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def words(self, port: int, environment: Mapping[str, str], command: str = "") -> list[str]:
        """The command, or another of the row's, as the words to run, listening on another port."""
        text = Template(command or self.command).safe_substitute(environment)
        words = shlex.split(text)
        return [str(port) if word == PORT else word.replace(f":{PORT}", f":{port}") for word in words]

    @property
    def connections(self) -> int:
        """The most connections to one database server, of all processes, monitors included."""
        settings = checked(tomllib.loads(configuration(self, [{"host": "db"}])))
        (need,) = sizing.needs(settings, self.processes)
        return need.connections


def load() -> dict[str, Row]:
    """All rows by name, in their order."""
    with (FOLDER / "rows.toml").open("rb") as file:
        return {row["name"]: Row(**row) for row in tomllib.load(file)["row"]}


def configuration(row: Row, endpoints: Iterable[Mapping[str, Any]]) -> str:
    """The TOML file that PGDBPOOL_CONFIG names. `endpoints` are as in `db`: host, port, name, user, ..."""
    pool_type = {} if row.model == "asyncio" else {"type": row.model}
    lines = [f"{key} = {json.dumps(value)}" for key, value in pool_type.items()]
    for endpoint in endpoints:
        lines += ["", "[[db]]", *(f"{key} = {json.dumps(value)}" for key, value in endpoint.items())]
    for name, settings in GROUPS.items():
        settings = {"connection_count": row.groups[name], **settings}
        lines += ["", f"[groups.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    return "\n".join(lines) + "\n"
