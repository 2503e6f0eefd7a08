"""Connections to Redis or Valkey."""

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

TIMEOUT_S = 5.0
"""How long a command may take. Longer than any blocking read that we ask for."""


def connect_redis(url: str) -> redis.Redis:
    """A client for `url` that never repeats a command by itself: a read from a group and an append aren't idempotent.

    Nothing connects yet. Answers are bytes.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        client_name="metering",
        protocol=2,
    )


def connect_redis_async(url: str, *, timeout_s: float, max_connections: int) -> redis.asyncio.Redis:
    """A client for `url` in an event loop, that never repeats a command by itself. Nothing connects yet.

    Whoever finds all connections in use waits for one as long as for an answer: `timeout_s`.
    """
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=AsyncRetry(NoBackoff(), 0),
        client_name="metering",
        protocol=2,
    )
    return redis.asyncio.Redis.from_pool(pool)
