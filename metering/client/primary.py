"""Connections that leave a server which is no longer the primary."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.retry import Retry

from metering.client import limits
from metering.client.answers import as_text
from metering.client.sentinel import AsksSentinel, Sentinels, is_sentinel_url, read_sentinel_url

_LEFT_AT: Final = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN", "NOREPLICAS", "MISCONF"})
"""What a server answers that is no longer the primary (the first three), or can't be it now: there may be another one by then."""
_ASK_ROLE: Final = b"*1\r\n$5\r\nHELLO\r\n"
"""HELLO tells the role, changes nothing, and no ACL can forbid it."""


class NotPrimary(redis.ConnectionError, redis.ResponseError):
    """The server takes no writes now, and its connection is closed.

    What passes by trying again is a connection error; being an answer too, it leaves a pipeline those that came before it.
    """


@dataclass(slots=True)
class Primary:
    """What the connections of one client know of their server."""

    changes: int = 0
    """How often it has ceased to be the primary. A connection from before the last time is closed before it is used again."""


class LeavesReplicas(AbstractConnection):
    """A connection that is closed as soon as its server isn't the primary; the command that found out raises NotPrimary.

    A server that is demoted keeps its connections, refuses what is written, and answers what is read with what it has. So each
    connection asks for the role: with its first command, then every ROLE_CHECK_S along with another, in the same round trip.
    """

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        self._primary = primary
        self._forget()
        super().__init__(**options)

    def _forget(self) -> None:
        self._changes = self._primary.changes
        self._was_primary = False
        self._role_due_s = 0.0
        self._asked = False
        """Whether the next answer is the role."""
        self._left = False
        """Whether answers that are still waited for won't come."""

    def connect(self) -> None:
        """Connect, unless it is connected, and nobody has found since that this is the wrong server."""
        if self.is_connected and self._changes != self._primary.changes:
            self.disconnect()
        self._left = False
        super().connect()  # type: ignore[no-untyped-call]

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the socket."""
        self._forget()
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, and where it is due ask for the role before: the server answers both in one go."""
        if not self.is_connected:
            self._left = False
            self.connect_check_health(check_health=False)
        if check_health:
            self.check_health()  # type: ignore[no-untyped-call] # reads an answer of its own, so it goes first
            if not self._asked and time.monotonic() >= self._role_due_s:
                self._asked = True
                command = [_ASK_ROLE, *([command] if isinstance(command, str | bytes) else command)]
        super().send_packed_command(command, check_health=False)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """The answer to what was sent. Raises NotPrimary where the server isn't the primary."""
        if self._left:
            raise NotPrimary("what this server answered wasn't read: it takes no writes now")
        if self._asked:
            self._read_role()
        try:
            return super().read_response(*args, **options)
        except redis.ResponseError as error:
            if tells_to_leave(error):
                self._leave(error)
            raise

    def _read_role(self) -> None:
        self._asked = False
        try:
            about = super().read_response()
        except redis.ResponseError:  # it knows no HELLO (a proxy, perhaps), so isn't asked again
            self._role_due_s = float("inf")
            return
        try:
            check_role(about)
        except NotPrimary as error:
            self._leave(error)
        self._was_primary = True
        self._role_due_s = time.monotonic() + limits.ROLE_CHECK_S

    def _leave(self, why: redis.ResponseError) -> None:
        # Not where it never was the primary: others may have found the right one meanwhile.
        if self._was_primary and self._changes == self._primary.changes:
            self._primary.changes += 1
        self.disconnect()
        self._left = True
        raise (
            why if isinstance(why, NotPrimary) else NotPrimary(f"this server takes no writes now: {why}")
        ) from why


class _PrimaryConnection(LeavesReplicas, Connection):
    """Over TCP."""


class _PrimarySSLConnection(LeavesReplicas, SSLConnection):
    """Over TLS."""


class _PrimaryUnixConnection(LeavesReplicas, UnixDomainSocketConnection):
    """Over a Unix socket."""


class _PrimarySentinelConnection(LeavesReplicas, AsksSentinel, Connection):
    """Over TCP, to where Sentinel says."""


class _PrimarySentinelSSLConnection(LeavesReplicas, AsksSentinel, SSLConnection):
    """Over TLS, to where Sentinel says."""


_CLASSES: Final[dict[type, type]] = {
    Connection: _PrimaryConnection,
    SSLConnection: _PrimarySSLConnection,
    UnixDomainSocketConnection: _PrimaryUnixConnection,
}


def connect(url: str, timeout_s: float) -> redis.Redis:
    """A client that never repeats a command by itself, and leaves a server that isn't the primary. Nothing connects yet."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "metering-client",
        "protocol": 2,
    }
    if is_sentinel_url(url):
        said = read_sentinel_url(url)
        options |= {**said.server, "sentinels": Sentinels(said, timeout_s)}
        tls = "connection_class" in said.server
        options["connection_class"] = _PrimarySentinelSSLConnection if tls else _PrimarySentinelConnection
    else:
        options |= parse_url(url)  # type: ignore[no-untyped-call]
        options["connection_class"] = _CLASSES[options.get("connection_class", Connection)]
    return redis.Redis.from_pool(redis.ConnectionPool(primary=Primary(), **options))


def tells_to_leave(error: Exception) -> bool:
    """Whether an answer says that the server is no longer the primary, or can't be it now."""
    if not isinstance(error, redis.ResponseError):
        return False
    said = str(error)
    code = error.status_code or said.partition(" ")[0]
    if code == "EXECABORT":  # a transaction that was begun before
        code = said.rpartition("because of: ")[2].partition(" ")[0]
    return code in _LEFT_AT or isinstance(error, NotPrimary)


def check_role(about: Any) -> None:
    """Take what HELLO answered. Raises NotPrimary if it came from a server that isn't the primary."""
    if isinstance(about, redis.ResponseError) and not tells_to_leave(about):
        return  # it knows no HELLO
    if isinstance(about, Exception):
        raise about
    said = about if isinstance(about, Mapping) else dict(zip(about[::2], about[1::2], strict=True))
    role = as_text(said.get(b"role", said.get("role")))
    if role != "master":
        raise NotPrimary(f"this server takes no writes now: it says that it is a {role}")


def leave_if_told(client: redis.Redis, error: Exception) -> None:
    """Close the idle connections of a client that was given, where a server said that it isn't the primary."""
    if not tells_to_leave(error) or issubclass(client.connection_pool.connection_class, LeavesReplicas):
        return  # our own close by themselves
    client.connection_pool.disconnect(inuse_connections=False)
    if client.connection is not None:  # its only one
        with client.single_connection_lock:
            client.connection.disconnect()  # type: ignore[no-untyped-call]
