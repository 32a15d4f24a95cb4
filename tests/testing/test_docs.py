"""The guide's examples, as they stand."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.testing.helpers import needs_pgbouncer

GUIDE = Path(__file__).parents[2] / "docs" / "testing.rst"


@needs_pgbouncer
def test_every_example_of_the_guide_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", GUIDE.read_text(), re.MULTILINE)
    assert len(blocks) == 7
    for number, block in enumerate(blocks):
        example = textwrap.dedent(block)
        if "def test_" not in example:
            example = "def test_example():\n" + textwrap.indent(example, "    ")
        (tmp_path / f"test_example_{number}.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "9 passed" in result.stdout, result.stdout + result.stderr
