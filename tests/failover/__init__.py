"""Servers fail in every way of `bench.failover`, and pgdbpool has to come through."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:  # `bench` is not installed, and not every way to start pytest puts the root there
    sys.path.insert(0, str(ROOT))
