"""The directive ``sizing-table``: what each deployment of `examples/rows.toml` needs.

It is computed while the manual is built, so the table cannot differ from what is tested, nor from what
`pgdbpool check` says.
"""

import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pgdbpool import sizing
from pgdbpool.config import load

HEAD = ("Deployment", "Model", "Processes", "Threads", "Groups", "A process", "A server must admit")
WIDTHS = (30, 14, 8, 8, 26, 8, 10)


class SizingTable(SphinxDirective):
    """The table."""

    required_arguments = 1  # the file with the rows

    def run(self) -> list[nodes.Node]:
        relative, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        sys.path.insert(0, str(Path(path).parent.parent))
        from examples import rows

        lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, WIDTHS))}", ""]
        lines += _row(*HEAD)
        for row in rows.load().values():
            (need,) = sizing.needs(load(tomllib.loads(rows.configuration(row, [{"host": "db"}]))), row.processes)
            groups = ", ".join(f"{part.group} {part.connections}" for part in need.parts)
            numbers = (row.processes, row.threads, f"{groups}, monitor {need.probes}", need.per_process)
            lines += _row(row.title, row.model, *map(str, numbers), f"**{need.connections}**")
        return self.parse_text_to_nodes("\n".join(lines))


def _row(first: str, *others: str) -> list[str]:
    return [f"   * - {first}", *(f"     - {each}" for each in others)]


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("sizing-table", SizingTable)
    return {"parallel_read_safe": True}
