"""Connections to Redis or Valkey."""

import redis
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
