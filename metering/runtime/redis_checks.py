"""What a Redis or Valkey must be so that no event that it took is thrown out or forgotten, and it knows all that we ask."""

from dataclasses import dataclass
from typing import Any, Final

import redis

OLDEST: Final = (7, 0)
"""Redis from 7.0 on has all that we ask (EVAL_RO, what XINFO tells, key permissions); Valkey began after it."""
_NEVER_EVICTS: Final = "noeviction"


class UnfitRedisError(Exception):
    """This Redis can't be worked with. The text names the remedy."""


@dataclass(frozen=True, slots=True)
class RedisAbout:
    """What a server says of itself. None: not to this user."""

    version: str
    mode: str
    """`standalone`, `cluster` or `sentinel`."""
    maxmemory_policy: str | None
    has_append_only_file: bool | None

    @property
    def problem(self) -> str | None:
        """What is wrong with it, with the remedy; None: nothing that is known."""
        if _numbers(self.version) < OLDEST:
            return (
                f"Redis is of version {self.version}, this program needs Redis 7.0 or newer, or Valkey: upgrade the server, or"
                " let METERING_REDIS_URL lead to another."
            )
        if self.mode == "cluster":
            return (
                "Redis runs in cluster mode, which this program can't use: let METERING_REDIS_URL lead to a server with"
                " cluster-enabled no; redis+sentinel:// is there for several servers."
            )
        if self.mode == "sentinel":
            return (
                "METERING_REDIS_URL leads to a Sentinel: write redis+sentinel://host1:26379,host2:26379/name."
            )
        if self.maxmemory_policy not in {None, _NEVER_EVICTS}:
            return (
                f"Redis would throw out events that it took (maxmemory-policy {self.maxmemory_policy}): set maxmemory-policy"
                " noeviction in its configuration, and by CONFIG SET."
            )
        if self.has_append_only_file is False:
            return (
                "Redis keeps no append-only file, so a restart would forget events that it took: set appendonly yes in its"
                " configuration, and by CONFIG SET."
            )
        return None

    @property
    def concerns(self) -> list[str]:
        """What can't be known."""
        if self.maxmemory_policy is not None and self.has_append_only_file is not None:
            return []
        said = (
            "Redis doesn't tell this user whether it evicts or keeps an append-only file: give the user the right to INFO"
            " (+info), or see to it that maxmemory-policy is noeviction and appendonly is yes."
        )
        return [said]


def check_redis(client: redis.Redis) -> RedisAbout:
    """Raise UnfitRedisError if something is wrong with the server; redis.RedisError where it can't be asked."""
    about = read_about(client)
    if about.problem is not None:
        raise UnfitRedisError(about.problem)
    return about


def read_about(client: redis.Redis) -> RedisAbout:
    """Ask the server. Not every user has the right to INFO; HELLO everybody has."""
    said: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    hello = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
    version, mode = (_text(hello[name]) for name in (b"version", b"mode"))
    if _numbers(version) < OLDEST or mode != "standalone":
        return RedisAbout(version, mode, None, None)
    memory, persistence = (_told(client, section) for section in ("memory", "persistence"))
    return RedisAbout(
        version,
        mode,
        None if memory is None else str(memory.get("maxmemory_policy")),
        None if persistence is None else bool(persistence.get("aof_enabled")),
    )


def _told(client: redis.Redis, section: str) -> dict[str, Any] | None:
    """What INFO says; None where this user may not ask."""
    try:
        found: Any = client.info(section)
    except redis.ResponseError as error:
        if "NOPERM" not in str(error) and not isinstance(error, redis.exceptions.NoPermissionError):
            raise
        return None
    return dict(found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
