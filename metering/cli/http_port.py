"""Where the API of this machine listens, and how it is reached from here."""

import socket

from metering.runtime.settings import Settings, SettingsError


def free_http_port(settings: Settings) -> int:
    """The API's port: METERING_HTTP_PORT, or a free one where that is 0. Raises SettingsError where it can't be had."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    try:
        with socket.create_server((settings.http_host, settings.http_port), family=family) as probe:
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise SettingsError(
            f"METERING_HTTP_PORT: {settings.http_host}:{settings.http_port} can't be served ({error.strerror or error});"
            " choose another port, or 0 for a free one."
        ) from error


def local_url(host: str, port: int) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to be told from an address
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
