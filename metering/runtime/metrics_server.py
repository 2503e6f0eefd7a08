"""Where a role's metrics are read (docs/reference/metrics.md)."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import disable_created_metrics, start_http_server

from metering.runtime.role_metrics import role_registry


class MetricsPortError(Exception):
    """The metrics can't be served where they were asked for. The text says what to do."""


@contextmanager
def serving_metrics(host: str, port: int, role: str) -> Iterator[str]:
    """Serve the metrics that `role` knows at `http://host:port/metrics` while the block runs; port 0 takes a free one.

    Gives the address that is served. Raises MetricsPortError where it can't be had.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        server, thread = start_http_server(port, host, role_registry(role))
    except (OSError, OverflowError) as error:
        raise MetricsPortError(
            f"METERING_METRICS_PORT: {host}:{port} can't be served ({error}); choose another port, or 0 for a free one."
        ) from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
