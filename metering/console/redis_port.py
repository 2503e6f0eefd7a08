"""Letting the embedded Valkey listen on a port of this machine too, for telephony that knows no Unix sockets."""

import socket

import redis

from metering.console.http_port import LOOPBACK
from metering.runtime.settings import Settings, SettingsError
from metering.sandbox.servers.embedded import valkey_pid


def check_redis_port(settings: Settings) -> None:
    """Raise SettingsError where a port is asked for that the embedded Valkey can't have, or the server isn't ours."""
    if settings.redis_port is not None and settings.redis_url is not None:
        raise SettingsError(
            "METERING_REDIS_PORT is the embedded Valkey's, and METERING_REDIS_URL names another server:"
            " unset one of them."
        )
    if settings.redis_port is not None and valkey_pid(settings.data_dir) is None:
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
