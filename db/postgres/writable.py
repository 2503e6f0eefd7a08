"""Whether a session may write. One that may not belongs to a server that was demoted, or to a database that was made read-only.
It is left for another, by who only reads too, because a standby that is behind answers with old balances.

Postgres itself is asked, when a connection is made and now and then while it is used. What libpq reports of a session is not
believed: a pooler in between may report what was so before (pgbouncer#859).
"""

import select
import time
from typing import Any, Final, cast

import psycopg
from psycopg import errors
from psycopg.pq import ConnStatus, ExecStatus
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

ASK_AGAIN_AFTER_S: Final = 5.0
"""How long an answer is believed, so that no transaction on the hot path has a round trip of its own for it."""

QUESTION: Final = "SHOW transaction_read_only"
"""What a transaction would be that begins now: on, too, on a server in recovery."""

_ASKED_S: Final = "metering: asked whether it may write"
"""In a connection's `info`: when. Not there for one that was just made."""


class WritableConnection(psycopg.AsyncConnection[Any]):
    """A connection that knows when it was last asked whether it may write."""

    asked_s: float | None = None


def use_writable_only(engine: Engine) -> None:
    """Let nobody have a connection of `engine` that has ended, or that may not write as far as is known.

    Others are made in their place. Where no server that writes is to be had, connecting fails with ReadOnlySqlTransaction.
    """
    event.listen(engine, "checkout", _checked)


def ask_again(info: dict[Any, Any]) -> None:
    """Have the connection of that `info` asked before it is used again: something has failed on it."""
    if _ASKED_S in info:
        info[_ASKED_S] = float("-inf")


def refuse_read_only(answer: object) -> None:
    """Raise ReadOnlySqlTransaction unless that is what a session that may write answers to `QUESTION`."""
    if answer not in {"off", b"off"}:
        raise errors.ReadOnlySqlTransaction(
            "this server takes no writes: it is a standby, or the database was made read-only"
        )


async def check_async(connection: WritableConnection) -> None:
    """The same for a connection of an event loop, in autocommit; one that won't do is closed. Raises psycopg.Error."""
    now_s = time.monotonic()
    if (
        connection.asked_s is not None
        and now_s - connection.asked_s < ASK_AGAIN_AFTER_S
        and not _has_news(connection)
    ):
        return
    try:
        row = await (await connection.execute(QUESTION)).fetchone()
        refuse_read_only(None if row is None else row[0])
    except psycopg.Error:
        await connection.close()
        raise
    connection.asked_s = now_s


def _checked(driver: object, entry: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
    connection = cast("psycopg.Connection[Any]", driver)
    now_s, asked_s = time.monotonic(), entry.info.get(_ASKED_S)
    if asked_s is not None and now_s - asked_s < ASK_AGAIN_AFTER_S and not _has_news(connection):
        return
    try:
        _require_writable(connection)
    except psycopg.Error as error:
        if asked_s is None:
            raise  # it was just made: there is no better one to be had
        # The pool makes another one for whoever asks, and others of this age anew as they are asked for.
        raise InvalidatePoolError(str(error)) from error
    entry.info[_ASKED_S] = now_s


def _require_writable(connection: psycopg.Connection[Any]) -> None:
    """Ask outside of any transaction, in one round trip."""
    if connection.closed:
        raise psycopg.OperationalError("the connection to Postgres has ended")
    result = connection.pgconn.exec_(QUESTION.encode())
    if result.status != ExecStatus.TUPLES_OK:
        if connection.pgconn.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection to Postgres was lost")
        raise errors.error_from_result(result)
    refuse_read_only(result.get_value(0, 0))


def _has_news(connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> bool:
    """Whether it has ended, or something unasked has come on it: mostly that it ends."""
    if connection.closed:
        return True
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return bool(poller.poll(0))
