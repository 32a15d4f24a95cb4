"""Every deployment of `examples/rows.toml`: really run, and asked from outside while databases fail."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # `examples` is not installed, and not every way to start pytest puts the root there
    sys.path.insert(0, str(ROOT))
