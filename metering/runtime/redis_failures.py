"""Telling a Redis that refuses from one that is away."""

from typing import Final

import redis

_REFUSES: Final = frozenset({"WRONGPASS", "NOAUTH", "NOPERM", "MOVED", "ASK", "CROSSSLOT"})
"""What no waiting ends: a password, a right, cluster mode."""
_REFUSES_SAYING: Final = (
    "unknown command",
    "AUTH <password> called without any password",
    "invalid username-password",
    "invalid password",
    "SELECT is not allowed in cluster mode",
    "DB index is out of range",
    "unsupported protocol version",
    "certificate verify failed",
)


def refuses(error: BaseException) -> bool:
    """Whether the server answers, and won't do it until somebody mends something."""
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return True  # connection errors, to redis-py
    said = str(error)
    if isinstance(error, redis.ResponseError):
        code = error.status_code or said.partition(" ")[0]
        if code in _REFUSES or isinstance(error, redis.exceptions.NoPermissionError):
            return True
    return isinstance(error, redis.RedisError) and any(words in said for words in _REFUSES_SAYING)
