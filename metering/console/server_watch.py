"""Looking at how the servers are set up while a role runs: at its start, and now and then, as another server may take over."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from metering.runtime.health import HEALTH, POSTGRES, REDIS

if TYPE_CHECKING:
    import redis
    from sqlalchemy import Engine

EVERY_S: Final = 15.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@contextmanager
def watching_servers(engine: "Engine", client: "redis.Redis", stop: threading.Event) -> Iterator[None]:
    """Refuse servers that can't be worked with; then look again while the block runs, and have health tell what is found.

    A Redis that is away is no reason not to start: it is looked at when it is there. Raises UnfitRedisError.
    """
    import redis

    from metering.runtime.redis_checks import check_redis
    from metering.runtime.redis_failures import refuses

    if not stop.is_set():
        _say_concerns_of_postgres(engine)
        try:
            for concern in check_redis(client).concerns:
                log.warning(concern)
        except redis.RedisError as error:
            if refuses(error):
                raise
            log.warning("Redis is away, and is looked at when it is there", error=str(error))
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(engine, client, ended), name="servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1)  # what hangs at a server is left behind


def _say_concerns_of_postgres(engine: "Engine") -> None:
    from db.postgres.failures import is_away
    from db.postgres.server_checks import read_about

    try:
        with engine.connect() as connection:
            concerns = read_about(connection).concerns
    except Exception as error:
        if not is_away(error):
            raise
        return  # it was there a moment ago
    for concern in concerns:
        log.warning(concern)


def _watch(engine: "Engine", client: "redis.Redis", ended: threading.Event) -> None:
    while not ended.wait(EVERY_S):
        _look_at_redis(client)
        _look_at_postgres(engine)


def _look_at_redis(client: "redis.Redis") -> None:
    import redis

    from metering.runtime.redis_checks import read_about

    # Away: whoever works with it says so. Refused: its connection has told.
    with suppress(redis.RedisError):
        HEALTH.unfit(REDIS, read_about(client).problem)


def _look_at_postgres(engine: "Engine") -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from db.postgres.server_checks import UnfitServerError, check_server

    try:
        check_server(engine)
    except UnfitServerError as error:
        HEALTH.unfit(POSTGRES, str(error))
    except SQLAlchemyError:
        pass  # the same
    else:
        HEALTH.unfit(POSTGRES, None)
