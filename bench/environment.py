"""On what the figures were measured: nothing in here names the machine."""

import datetime
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.async_peers import AsyncPeer
from bench.peers import Peer


def environment(command: str, postgresql: str, peers: Iterable[type[Peer] | type[AsyncPeer]]) -> dict[str, Any]:
    """Versions, processors, date and command."""
    packages = dict.fromkeys(["pgdbpool", "psycopg", *(peer.package for peer in peers)])
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "postgresql": postgresql,
        "packages": {name: version(name) for name in packages},
        "cpus": usable_cpus(),
        "cpu": cpu_model(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
