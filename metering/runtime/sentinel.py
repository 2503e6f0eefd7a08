"""Finding the primary by Redis Sentinel in an event loop; `metering.client.sentinel` has the rest."""

from typing import Any

import redis
import redis.asyncio
from redis.asyncio import connection as awaited
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from metering.client.sentinel import Address, SentinelUrl, UnknownPrimary, read_address, sentinel_options


class AsyncSentinels:
    """Those of one primary, for one event loop. Nothing connects before it is asked."""

    def __init__(self, url: SentinelUrl, timeout_s: float) -> None:
        self.name = url.name
        options = sentinel_options(url, timeout_s) | {"retry": Retry(NoBackoff(), 0)}
        if "connection_class" in options:
            options["connection_class"] = awaited.SSLConnection
        self._clients = [
            redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(host=host, port=port, **options))
            for host, port in url.hosts
        ]

    async def primary(self) -> Address:
        """Where the primary is, by the first that knows. Raises redis.RedisError where none does."""
        unknown: UnknownPrimary | None = None
        errors: list[str] = []
        for client in list(self._clients):
            try:
                found: Any = await client.execute_command(  # type: ignore[no-untyped-call]
                    "SENTINEL GET-MASTER-ADDR-BY-NAME", self.name
                )
            except redis.RedisError as error:
                if isinstance(error, redis.AuthenticationError | redis.ResponseError):
                    raise
                errors.append(str(error))
                self.doubt()
                continue
            finally:
                await (
                    client.connection_pool.disconnect()
                )  # it is asked seldom, and idle connections are cut by somebody
            if found:
                return read_address(found)
            unknown = UnknownPrimary(f"the Sentinels watch no primary that is called {self.name}")
        raise unknown or redis.ConnectionError(f"no Sentinel answers: {'; '.join(errors)}")

    def doubt(self) -> None:
        """Ask another one first from now on."""
        self._clients.append(self._clients.pop(0))


class AsksSentinelAsync(awaited.AbstractConnection):
    """A connection that asks, each time it connects, where the primary is."""

    def __init__(self, *, sentinels: AsyncSentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    async def connect_check_health(
        self, check_health: bool = True, retry_socket_connect: bool = True
    ) -> None:
        """Connect to the primary, unless it is connected."""
        if self.is_connected:
            return
        self.host, self.port = await self._sentinels.primary()
        await super().connect_check_health(check_health, retry_socket_connect)

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the socket."""
        self._sentinels.doubt()
        await super().disconnect(*args, **options)
