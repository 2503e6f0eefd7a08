"""Where the API of this machine listens, and how it is reached from here."""

import socket
from typing import Final

from metering.runtime.settings import SettingsError

LOOPBACK: Final = "127.0.0.1"


def free_http_port(host: str, port: int) -> int:
    """A port for the API on `host`: `port` itself, or a free one where that is 0. Raises SettingsError where it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        raise SettingsError(
            f"METERING_HTTP_PORT: {host}:{port} can't be served ({error.strerror or error});"
            " choose another port, or 0 for a free one."
        ) from error


def local_url(host: str, port: int) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to be told from an address
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
