"""Writes the lowest versions that pyproject.toml allows, as a constraints file of pip's.

Of what users install: the package itself and its `EXTRAS`. What these bring along is not held down, except `HELD`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("binary", "testing", "cli", "demo", "otel", "prometheus")
HELD = ("click<8.2",)  # what the newest warns of, an old typer does
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[([\w,-]+)\])?(?:>=([\w.]+))?")


def lowest(project: dict[str, object]) -> list[str]:
    """One line for each requirement. Raises ValueError for one that has no lower bound."""
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    core: list[str] = project["dependencies"]  # type: ignore[assignment]
    found = {}
    for requirement in [*core, *(each for extra in EXTRAS for each in extras[extra])]:
        matched = _REQUIREMENT.fullmatch(requirement)
        if matched is None:
            raise ValueError(f"{requirement}: expected a name and a lower bound")
        name, brings, bound = matched.groups()
        if name == project["name"]:
            continue
        if bound is None:
            raise ValueError(f"{requirement}: has no lower bound")
        found[name] = bound
        if brings == "binary":
            found[f"{name}-binary"] = bound
    return [*(f"{name}=={bound}" for name, bound in sorted(found.items())), *HELD]


if __name__ == "__main__":
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    sys.stdout.write("\n".join(lowest(tomllib.loads(pyproject.read_text())["project"])) + "\n")
