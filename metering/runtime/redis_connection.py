"""Connections to Redis or Valkey, which leave a server that is no longer the primary."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import redis
import redis.asyncio
from redis import connection as blocking
from redis.asyncio import connection as awaited
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from metering.client.sentinel import AsksSentinel, Sentinels, is_sentinel_url, read_sentinel_url
from metering.runtime.health import HEALTH, REDIS
from metering.runtime.redis_failures import refuses
from metering.runtime.sentinel import AsksSentinelAsync, AsyncSentinels

T = TypeVar("T")

TIMEOUT_S = 5.0
"""How long a command may take. Longer than any blocking read that we ask for."""

ROLE_CHECK_S: Final = 2.0
"""How often a connection in use asks for its server's role: for so long a demoted one may be read from. Writes it refuses."""

ASK_ROLE: Final = b"*1\r\n$5\r\nHELLO\r\n"
"""HELLO tells the role, changes nothing, and no ACL can forbid it; ROLE and INFO are for administrators."""

LEFT_AT: Final = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN", "NOREPLICAS", "MISCONF"})
"""What a server answers that is no longer the primary (the first three), or can't be it now: there may be another one by then."""

_OWN_LOOK: Final = "'info'"
"""A command that not every user needs the right to (`metering.runtime.redis_checks`)."""


class NotPrimaryError(redis.ConnectionError):
    """The server takes no writes now. Its connection is closed; the next command connects to the address anew.

    A connection error, because to everybody who uses redis-py, dramatiq too, that is what passes by trying again.
    """


def on_primary(do: Callable[[], T]) -> T:
    """Do it; and once more where a server has just turned out to be the primary no longer: what is done must be safe to repeat.

    For what is said once and not tried again soon: a connection that was idle while the servers were switched hears of it only by
    its next command.
    """
    try:
        return do()
    except NotPrimaryError:
        return do()


@dataclass(slots=True)
class Primary:
    """What the connections of one client know of their server."""

    changes: int = 0
    """How often it has ceased to be the primary. A connection from before the last time is closed before it is used again."""


def connect_redis(url: str) -> redis.Redis:
    """A client for `url` that never repeats a command by itself: a read from a group and an append aren't idempotent.

    Nothing connects yet. Answers are bytes.
    """
    options: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "metering",
        "protocol": 2,
    }
    if is_sentinel_url(url):
        said = read_sentinel_url(url)
        options |= {**said.server, "sentinels": Sentinels(said, TIMEOUT_S)}
        tls = "connection_class" in said.server
        options["connection_class"] = PrimarySentinelSSLConnection if tls else PrimarySentinelConnection
    else:
        options |= blocking.parse_url(url)  # type: ignore[no-untyped-call]
        options["connection_class"] = _CLASSES[options.get("connection_class", blocking.Connection)]
    return redis.Redis.from_pool(redis.ConnectionPool(primary=Primary(), **options))


def connect_redis_async(url: str, *, timeout_s: float, max_connections: int) -> redis.asyncio.Redis:
    """A client for `url` in an event loop, that never repeats a command by itself. Nothing connects yet.

    Whoever finds all connections in use waits for one as long as for an answer: `timeout_s`.
    """
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": AsyncRetry(NoBackoff(), 0),
        "client_name": "metering",
        "protocol": 2,
    }
    if is_sentinel_url(url):
        said = read_sentinel_url(url)
        options |= {**said.server, "sentinels": AsyncSentinels(said, timeout_s)}
        tls = "connection_class" in said.server
        options["connection_class"] = (
            PrimarySentinelSSLConnectionAsync if tls else PrimarySentinelConnectionAsync
        )
    else:
        options |= awaited.parse_url(url)
        options["connection_class"] = _ASYNC_CLASSES[options.get("connection_class", awaited.Connection)]
    return redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool(primary=Primary(), **options))


class _Watch:
    """What one connection knows of its server's role. Whoever holds it asks along with a command, in the same round trip."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self.start()

    def start(self) -> None:
        """Know nothing: the next connection may lead elsewhere."""
        self._changes = self._primary.changes
        self._was_primary = False
        self._due_s = 0.0
        self.asked = False
        """Whether the next answer is the role."""

    def outdated(self) -> bool:
        """Whether another connection has found since that the server is no longer the primary."""
        return self._changes != self._primary.changes

    def ask(self) -> bool:
        """Whether to ask for the role with the command that is about to be sent. Counts as asked then."""
        if self.asked or time.monotonic() < self._due_s:
            return False
        self.asked = True
        return True

    def hear(self, answer: Any) -> None:
        """Take what HELLO answered. Raises NotPrimaryError if the server isn't the primary."""
        said = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
        role = said.get(b"role", said.get("role"))
        if role not in (b"master", "master"):
            self.leave(f"it says that it is a {_text(role)}")
        self._was_primary = True
        self._due_s = time.monotonic() + ROLE_CHECK_S

    def cannot_hear(self) -> None:
        """This server knows no HELLO (a proxy, perhaps); don't ask it again."""
        self._due_s = float("inf")

    def look_at(self, error: redis.ResponseError) -> None:
        """Raise NotPrimaryError if that is what a command's error says. What else the server refuses, health tells of."""
        if tells_to_leave(error):
            self.leave(str(error))
        if refuses(error) and _OWN_LOOK not in str(error):
            HEALTH.statement_refused(REDIS, str(error))

    def leave(self, said: str) -> NoReturn:
        # Not where it never was the primary: others may have found the right one meanwhile.
        if self._was_primary and not self.outdated():
            self._primary.changes += 1
        raise NotPrimaryError(f"this server takes no writes now ({said}); connecting anew finds the primary")


def tells_to_leave(error: redis.ResponseError) -> bool:
    """Whether an answer says that the server is no longer the primary, or can't be it now."""
    said = str(error)
    code = error.status_code or said.partition(" ")[0]
    if code == "EXECABORT":  # a transaction that was begun before
        code = said.rpartition("because of: ")[2].partition(" ")[0]
    return code in LEFT_AT


def _text(role: Any) -> str:
    return role.decode(errors="replace") if isinstance(role, bytes) else str(role)


@contextmanager
def _telling_health() -> Iterator[None]:
    """Have this process's health tell whether the server takes the connection that is made within."""
    try:
        yield
    except redis.RedisError as error:
        if refuses(error):
            HEALTH.connection_refused(REDIS, str(error))
        raise
    HEALTH.accepted(REDIS)


class _LeavesReplicas(blocking.AbstractConnection):
    """A connection that is closed as soon as its server isn't the primary; the command that found out raises NotPrimaryError."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        self._watch = _Watch(primary)
        super().__init__(**options)

    def connect(self) -> None:
        """Connect, unless it is connected, and nobody has found since that this is the wrong server."""
        if self.is_connected and self._watch.outdated():
            self.disconnect()
        if not self.is_connected:
            with _telling_health():
                super().connect()  # type: ignore[no-untyped-call]

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the socket."""
        self._watch.start()
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, and where it is due ask for the role before: the server answers both in one go."""
        if not self.is_connected:
            with _telling_health():
                self.connect_check_health(check_health=False)
        if check_health:
            self.check_health()  # type: ignore[no-untyped-call] # reads an answer of its own, so it goes first
            if self._watch.ask():
                command = [ASK_ROLE, *([command] if isinstance(command, str | bytes) else command)]
        super().send_packed_command(command, check_health=False)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """The answer to what was sent. Raises NotPrimaryError where the server isn't the primary."""
        try:
            if self._watch.asked:
                self._read_role()
            return super().read_response(*args, **options)
        except redis.ResponseError as error:
            try:
                self._watch.look_at(error)
            except NotPrimaryError:
                self.disconnect()
                raise
            raise

    def _read_role(self) -> None:
        self._watch.asked = False
        try:
            answer = super().read_response()
        except redis.ResponseError:
            self._watch.cannot_hear()
            return
        try:
            self._watch.hear(answer)
        except NotPrimaryError:
            self.disconnect()
            raise


class PrimaryConnection(_LeavesReplicas, blocking.Connection):
    """Over TCP."""


class PrimarySSLConnection(_LeavesReplicas, blocking.SSLConnection):
    """Over TLS."""


class PrimaryUnixConnection(_LeavesReplicas, blocking.UnixDomainSocketConnection):
    """Over a Unix socket."""


class PrimarySentinelConnection(_LeavesReplicas, AsksSentinel, blocking.Connection):
    """Over TCP, to where Sentinel says."""


class PrimarySentinelSSLConnection(_LeavesReplicas, AsksSentinel, blocking.SSLConnection):
    """Over TLS, to where Sentinel says."""


class _LeavesReplicasAsync(awaited.AbstractConnection):
    """The same in an event loop."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        self._watch = _Watch(primary)
        super().__init__(**options)

    async def connect(self) -> None:
        """Connect, unless it is connected, and nobody has found since that this is the wrong server."""
        if self.is_connected and self._watch.outdated():
            await self.disconnect(nowait=True)
        if not self.is_connected:
            with _telling_health():
                await super().connect()  # type: ignore[no-untyped-call]

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the socket."""
        self._watch.start()
        await super().disconnect(*args, **options)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, and where it is due ask for the role before: the server answers both in one go."""
        if not self.is_connected:
            with _telling_health():
                await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call] # reads an answer of its own, so it goes first
            if self._watch.ask():
                command = [ASK_ROLE, *([command] if isinstance(command, str | bytes) else command)]
        await super().send_packed_command(command, check_health=False)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """The answer to what was sent. Raises NotPrimaryError where the server isn't the primary."""
        try:
            if self._watch.asked:
                await self._read_role()
            return await super().read_response(*args, **options)
        except redis.ResponseError as error:
            try:
                self._watch.look_at(error)
            except NotPrimaryError:
                await self.disconnect(nowait=True)
                raise
            raise

    async def _read_role(self) -> None:
        self._watch.asked = False
        try:
            answer = await super().read_response()
        except redis.ResponseError:
            self._watch.cannot_hear()
            return
        try:
            self._watch.hear(answer)
        except NotPrimaryError:
            await self.disconnect(nowait=True)
            raise


class PrimaryConnectionAsync(_LeavesReplicasAsync, awaited.Connection):
    """Over TCP."""


class PrimarySSLConnectionAsync(_LeavesReplicasAsync, awaited.SSLConnection):
    """Over TLS."""


class PrimaryUnixConnectionAsync(_LeavesReplicasAsync, awaited.UnixDomainSocketConnection):
    """Over a Unix socket."""


class PrimarySentinelConnectionAsync(_LeavesReplicasAsync, AsksSentinelAsync, awaited.Connection):
    """Over TCP, to where Sentinel says."""


class PrimarySentinelSSLConnectionAsync(_LeavesReplicasAsync, AsksSentinelAsync, awaited.SSLConnection):
    """Over TLS, to where Sentinel says."""


_CLASSES: Final[dict[type, type]] = {
    blocking.Connection: PrimaryConnection,
    blocking.SSLConnection: PrimarySSLConnection,
    blocking.UnixDomainSocketConnection: PrimaryUnixConnection,
}
_ASYNC_CLASSES: Final[dict[type, type]] = {
    awaited.Connection: PrimaryConnectionAsync,
    awaited.SSLConnection: PrimarySSLConnectionAsync,
    awaited.UnixDomainSocketConnection: PrimaryUnixConnectionAsync,
}
