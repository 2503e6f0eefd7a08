"""Which program runs, for Prometheus (docs/reference/metrics.md)."""

import platform
from typing import Final

from prometheus_client import Gauge

from metering import __version__

BUILD_INFO: Final = Gauge(
    "metering_build_info",
    "Always 1; its labels say which role this process runs, of which version, on which Python.",
    ["role", "version", "python"],
)


def tell_build(role: str) -> None:
    """Let this process say that it runs `role`."""
    BUILD_INFO.clear()
    BUILD_INFO.labels(role, __version__, platform.python_version()).set(1)
