"""What a measure gives back."""

from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Column:
    """``format`` is that of str.format; ``title`` includes the unit."""

    key: str
    title: str
    format: str = "{:,.2f}"


@dataclass
class Table:
    """One table. Each row has "peer" and what the columns name; ``missing`` says who was not measured."""

    key: str
    title: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    """Single values by peer in seconds, where they are worth keeping."""

    def row(self, peer: str) -> Row:
        """The row of a peer; empty if there is none."""
        return next((row for row in self.rows if row["peer"] == peer), {})

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        del content["values"]
        return content
