"""Whether a session may write. One that may not belongs to a server that was demoted, or to a database that was made read-only.
It is left for another, by who only reads too, because a standby that is behind answers with old balances.

Postgres itself is asked, when a connection is made and now and then while it is used. What libpq reports of a session is not
believed: a pooler in between may report what was so before (pgbouncer#859).
"""

import select
import time
from typing import Any, Final, cast

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from db.postgres.session import PinnedAsyncConnection, PinnedConnection, SharedSessionError

ASK_AGAIN_AFTER_S: Final = 5.0
"""How long an answer is believed, so that no transaction on the hot path has a round trip of its own for it."""


def use_writable_only(engine: Engine) -> None:
    """Let nobody have a connection of `engine` that has ended, or that may not write as far as is known.

    Others are made in their place. Where no server that writes is to be had, connecting fails with ReadOnlySqlTransaction.
    """
    event.listen(engine, "checkout", _checked)


def ask_again(connection: psycopg.Connection[Any]) -> None:
    """Have it asked before it is used again: something has failed on it."""
    if isinstance(connection, PinnedConnection) and connection.asked_s is not None:
        connection.asked_s = float("-inf")


async def check_async(connection: PinnedAsyncConnection) -> None:
    """Ask one of an event loop, unless its last answer is believed; close it where it may not write. Raises psycopg.Error."""
    now_s = time.monotonic()
    if _is_believed(connection.asked_s, now_s) and not _has_news(connection):
        return
    try:
        await connection.ask_again()
    except psycopg.Error:
        await connection.close()
        raise
    connection.asked_s = now_s


def _checked(driver: object, _: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
    connection = cast("PinnedConnection", driver)
    now_s = time.monotonic()
    if connection.asked_s is None:
        connection.asked_s = now_s  # as it was made
    if _is_believed(connection.asked_s, now_s) and not _has_news(connection):
        return
    try:
        connection.ask_again()
    except SharedSessionError:
        raise  # another one would be the same
    except psycopg.Error as error:
        # The pool makes another one for whoever asks, and others of this age anew as they are asked for.
        raise InvalidatePoolError(str(error)) from error
    connection.asked_s = now_s


def _is_believed(asked_s: float | None, now_s: float) -> bool:
    return asked_s is not None and now_s - asked_s < ASK_AGAIN_AFTER_S


def _has_news(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether it has ended, or something unasked has come on it: mostly that it ends."""
    if connection.closed:
        return True
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return bool(poller.poll(0))
