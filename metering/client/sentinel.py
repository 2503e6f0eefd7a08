"""Finding the primary by Sentinel: `redis+sentinel://user:password@host1:26379,host2:26379/name`; `rediss+sentinel://` is TLS."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, SSLConnection, parse_url
from redis.retry import Retry

SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT: Final = 26379
ANSWER_LIMIT_S: Final = 1.0
"""How long one Sentinel may take: there are others."""

Address = tuple[str, int]


class UnknownPrimary(redis.ResponseError):
    """The Sentinels answer, and watch no primary of that name."""


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """What such a URL says."""

    hosts: tuple[Address, ...]
    name: str
    """What the Sentinels call the primary."""
    server: Mapping[str, Any] = field(repr=False)
    """How to connect to the primary, but for where, as redis-py has it."""
    sentinel: Mapping[str, Any] = field(repr=False)
    """How to connect to a Sentinel."""


def is_sentinel_url(url: str) -> bool:
    """Whether it is for this module to read."""
    return url.partition("://")[0] in SCHEMES


def read_sentinel_url(url: str) -> SentinelUrl:
    """Take it apart. User and password are the primary's; in the query, `sentinel_username`, `sentinel_password` the Sentinels'.

    What else the query says, such as `ssl_ca_certs`, is said to both. Raises ValueError, which quotes nothing.
    """
    said = urlsplit(url)
    user, at, hosts = said.netloc.rpartition("@")
    name, _, database = unquote(said.path).strip("/").partition("/")
    if not name or not hosts:
        raise ValueError(
            "must name the Sentinels and the primary that they watch, redis+sentinel://host1:26379,host2:26379/name"
        )
    if database and not database.isdecimal():
        raise ValueError("names a database that is not a number, after the name of the primary")
    query = dict(parse_qsl(said.query))
    own = {
        key: query.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in query
    }
    scheme = "rediss" if said.scheme == "rediss+sentinel" else "redis"
    server = dict(parse_url(f"{scheme}://{user}{at}primary/{database}?{urlencode(query)}"))  # type: ignore[no-untyped-call]
    del server["host"]
    sentinel = own | {key: value for key, value in server.items() if key.startswith("ssl_")}
    if scheme == "rediss":
        sentinel["connection_class"] = SSLConnection
    return SentinelUrl(tuple(_address(each) for each in hosts.split(",")), name, server, sentinel)


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # an IPv6 address without a port
        host, port = text, str(SENTINEL_PORT)
    host = host.strip().removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:  # noqa: PLR2004 - what a port can be
        raise ValueError("names a Sentinel that is no host:port")
    return host, int(port)


class Sentinels:
    """Those of one primary. Threads may share it; nothing connects before it is asked."""

    def __init__(self, url: SentinelUrl, timeout_s: float) -> None:
        self.name = url.name
        self._lock = threading.Lock()
        self._clients: Sequence[redis.Redis] = [
            redis.Redis.from_pool(
                redis.ConnectionPool(host=host, port=port, **sentinel_options(url, timeout_s))
            )
            for host, port in url.hosts
        ]

    def primary(self) -> Address:
        """Where the primary is, by the first that knows. Raises redis.RedisError where none does."""
        unknown: UnknownPrimary | None = None
        errors: list[str] = []
        for client in self._clients:
            try:
                found: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.name)  # type: ignore[no-untyped-call]
            except redis.RedisError as error:
                if isinstance(error, redis.AuthenticationError | redis.ResponseError):
                    raise  # they would all say so
                errors.append(str(error))
                self.doubt(client)
                continue
            finally:
                client.connection_pool.disconnect()  # it is asked seldom, and idle connections are cut by somebody
            if found:
                return read_address(found)
            unknown = UnknownPrimary(f"the Sentinels watch no primary that is called {self.name}")
        raise unknown or redis.ConnectionError(f"no Sentinel answers: {'; '.join(errors)}")

    def doubt(self, client: redis.Redis | None = None) -> None:
        """Ask another one first from now on: this one is away, or what it said led to no primary."""
        with self._lock:
            first, *others = self._clients
            if client is None or first is client:
                self._clients = [*others, first]


def sentinel_options(url: SentinelUrl, timeout_s: float) -> dict[str, Any]:
    """redis-py's options for a connection to a Sentinel."""
    limit_s = min(timeout_s, ANSWER_LIMIT_S)
    return {
        "socket_timeout": limit_s,
        "socket_connect_timeout": limit_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **url.sentinel,
    }


def read_address(found: Any) -> Address:
    """What a Sentinel says of where the primary is."""
    host, port = found
    return (host.decode() if isinstance(host, bytes) else str(host)), int(port)


class AsksSentinel(AbstractConnection):
    """A connection that asks, each time it connects, where the primary is."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect to the primary, unless it is connected."""
        if self.is_connected:
            return
        self.host, self.port = self._sentinels.primary()
        super().connect_check_health(check_health, retry_socket_connect)

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the socket."""
        self._sentinels.doubt()
        super().disconnect(*args, **options)  # type: ignore[no-untyped-call]
