"""Pools seen by other systems: OpenTelemetry (`otel`, extra ``otel``), Prometheus (`prometheus`, extra ``prometheus``).

Both say the same: `catalogue` has every metric once, with its names in both systems and where its values are in the
statistics. Nothing here is imported by the pool.

What stands between the application and a pool, and takes connections by `getconn`, says so with `skip_frames_of`.
"""

from ..frames import skip_frames_of

__all__ = ["skip_frames_of"]
