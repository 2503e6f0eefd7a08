"""Letting the embedded Valkey listen on a port of this machine too, for telephony that knows no Unix sockets."""

import socket

import redis

from metering.console.http_port import LOOPBACK
from metering.runtime.settings import Settings, SettingsError
from metering.sandbox.servers.embedded import valkey_pid


def check_redis_port(settings: Settings) -> None:
    """Raise SettingsError where a port is asked for that the embedded Valkey can't have."""
    if settings.redis_port is None:
        return
    if not (
        settings.data_dir.exists() and valkey_pid(settings.data_dir)
    ):  # one that runs may have the port already
        try:
            socket.create_server((LOOPBACK, settings.redis_port)).close()
        except OSError as error:
            raise _taken(settings.redis_port, error.strerror or str(error)) from error


def open_redis_port(client: redis.Redis, port: int) -> None:
    """Have the embedded Valkey listen on `port` of this machine alone. Raises SettingsError where it can't."""
    try:
        client.config_set("bind", LOOPBACK)
        client.config_set("port", str(port))
    except redis.ResponseError as error:
        raise _taken(port, str(error)) from error


def _taken(port: int, why: str) -> SettingsError:
    return SettingsError(
        f"METERING_REDIS_PORT: Valkey can't listen on {LOOPBACK}:{port} ({why}); choose another port, or unset it."
    )
