"""A small OpenTelemetry collector: takes OTLP over HTTP, decodes the protobuf, and keeps what came."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)


class Point(NamedTuple):
    """One data point."""

    attributes: dict[str, Any]
    data: Any


class Received(NamedTuple):
    """One metric of one export."""

    kind: str
    unit: str
    description: str
    monotonic: bool | None
    cumulative: bool | None
    points: list[Point]


class Collector:
    """``with Collector() as collector: OTLPMetricExporter(collector.url)``."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append(ExportMetricsServiceRequest.FromString(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)

    def last(self, scope: str = "pgdbpool") -> dict[str, Received]:
        """The metrics of one scope in the last export, by name."""
        return self.each(scope)[-1]

    def each(self, scope: str = "pgdbpool") -> list[dict[str, Received]]:
        """Those of every export."""
        return [
            {
                metric.name: _received(metric)
                for resource in request.resource_metrics
                for each in resource.scope_metrics
                if each.scope.name == scope
                for metric in each.metrics
            }
            for request in list(self.requests)
        ]


def _received(metric: Any) -> Received:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    points = [
        Point({each.key: getattr(each.value, each.value.WhichOneof("value")) for each in point.attributes}, point)
        for point in data.data_points
    ]
    monotonic = data.is_monotonic if kind == "sum" else None
    cumulative = data.aggregation_temporality == 2 if kind in ("sum", "histogram") else None
    return Received(kind, metric.unit, metric.description, monotonic, cumulative, points)
