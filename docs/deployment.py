"""The directive ``deployment``: one row of `examples/rows.toml`, with the command that the tests run."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Deployment(SphinxDirective):
    """``.. deployment:: gunicorn-threads``: command, model, sizes, how to reload and to end."""

    required_arguments = 1  # the row's name

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir).parent
        self.env.note_dependency(str(root / "examples" / "rows.toml"))
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        from examples import rows

        row = rows.load()[self.arguments[0]]
        words = row.command.split(" --")
        command = " \\\n       --".join(words)
        environment = "".join(f"   {name}={value} \\\n" for name, value in row.environment.items())
        groups = ", ".join(f"{name} {count}" for name, count in row.groups.items())
        how, what = row.reload.split(maxsplit=1)
        reload = {"signal": f"``kill -{what}`` to the first process", "run": f"``{what}``"}.get(how, f"edit ``{what}``")
        end = "Ctrl-C" if row.stop == "ctrl-c" else f"``kill -{row.stop.split()[1]}`` to the first process"
        text = f"""
.. code-block:: shell

{environment}   {command}

.. list-table::
   :widths: 34 66

   * - Model
     - {row.model}
   * - Processes, each with
     - {row.processes}, {row.threads} {"thread" if row.threads == 1 else "requests at a time"}
   * - ``connection_count`` of each group
     - {groups}
   * - A database server must admit
     - {row.connections} connections
   * - New workers
     - {reload}
   * - To end it
     - {end}
   * - By hand
     - ``make examples ROW={row.name}``
"""
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("deployment", Deployment)
    return {"parallel_read_safe": True}
