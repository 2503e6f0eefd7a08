"""Sessions of our own: set to what our statements count on, whatever the server, the database or the role has set.

Anybody may set `DateStyle`, `search_path` or `synchronous_commit` for a database, and a driver believes it. All is set by a
statement and not when connecting: PgBouncer knows no `options`, and a server refuses names that its version doesn't know.
"""

import secrets
from collections.abc import Mapping
from typing import Any, Final, Self

import psycopg
from psycopg import errors
from psycopg.pq import ConnStatus, ExecStatus

from db.postgres.refusals import raise_refusal
from metering.runtime.health import HEALTH, POSTGRES
from metering.runtime.names import SCHEMA

_PINNED: Final = {
    # What text means, both ways: the driver, and we, read and write it.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    # Which tables.
    "search_path": SCHEMA,
    # A statement after a lock must see what was committed while it waited; whoever needs a snapshot asks for it.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # Ours are short by themselves, but for audits; a limit of somebody else's would end those again and again.
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}
_TOKEN: Final = "metering.session"  # noqa: S105 - a name, and what it holds is no secret
"""A setting that no server knows: what was set there is there only in the session in which it was set."""

QUESTION: Final = f"SELECT current_setting('transaction_read_only'), current_setting('{_TOKEN}', true)"
"""What a transaction would be that begins now: read-only, too, on a server in recovery; and whose session this is."""


class SharedSessionError(psycopg.NotSupportedError):
    """A pooler gives this connection another session for each transaction."""

    def __init__(self) -> None:
        super().__init__(
            "a pooler in between shares sessions out anew for each transaction: let its pool_mode be session"
            " (PgBouncer) for this database, or let METERING_DATABASE_URL lead past it"
        )


def session_settings(*, lock_timeout_ms: int = 0, statement_timeout_ms: int = 0) -> dict[str, str]:
    """What a session is set to. A statement waits at most so long for a lock, and takes at most so long; 0 is without limit."""
    return {
        **_PINNED,
        "lock_timeout": f"{lock_timeout_ms}ms" if lock_timeout_ms else "0",
        "statement_timeout": f"{statement_timeout_ms}ms" if statement_timeout_ms else "0",
    }


class _Session:
    """What is known of a connection's session."""

    token: str
    server_pid: int
    """Of the process that serves it. A pooler tells clients another number."""
    asked_s: float | None = None
    """When it was last asked whether it may write (`db.postgres.writable`). None: it was just made."""

    def setting(self, settings: Mapping[str, str]) -> str:
        """SQL that sets it, in two statements: the first so that no limit of somebody else's ends the second."""
        self.token = secrets.token_hex(8)
        rows = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
        # Where `off` is set, a commit that was acknowledged may be lost in a crash. What else may be set there promises more.
        return f"""
            SET statement_timeout = 0;
            WITH pinned AS MATERIALIZED (
                SELECT set_config(name, value, false) FROM (VALUES {rows}) AS wanted (name, value)
                WHERE current_setting(name, true) <> value
                UNION ALL
                SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
            )
            SELECT set_config('{_TOKEN}', '{self.token}', false), current_setting('transaction_read_only'), pg_backend_pid()
            FROM (SELECT count(*) FROM pinned) AS settings
        """  # noqa: S608 - our own words

    def take_set(self, read_only: object, server_pid: object) -> None:
        """Take what it answered. Raises ReadOnlySqlTransaction."""
        self.server_pid = int(str(server_pid))
        refuse_read_only(read_only)

    def hear(self, read_only: object, token: object) -> None:
        """Take what `QUESTION` was answered with. Raises ReadOnlySqlTransaction, SharedSessionError."""
        refuse_read_only(read_only)
        if token != self.token:
            HEALTH.statement_refused(POSTGRES, str(SharedSessionError()))
            raise SharedSessionError


class PinnedConnection(_Session, psycopg.Connection[Any]):
    """A connection whose session is set, and may write, when it is given."""

    @classmethod
    def connect(cls, conninfo: str = "", *, settings: Mapping[str, str], **options: Any) -> Self:  # type: ignore[override] # settings are ours
        """Connect and set. Raises RefusedError where a server answers and refuses; psycopg.Error."""
        try:
            connection = super().connect(conninfo, **options)
        except psycopg.OperationalError as error:
            raise_refusal(error)
        try:
            connection.take_set(*ask(connection, connection.setting(settings))[1:])
        except BaseException:
            connection.close()
            raise
        HEALTH.accepted(POSTGRES)
        return connection

    def ask_again(self) -> None:
        """Outside of any transaction, in one round trip, whether it still may write, in its own session."""
        self.hear(*ask(self, QUESTION))


class PinnedAsyncConnection(_Session, psycopg.AsyncConnection[Any]):
    """The same for an event loop, in autocommit."""

    @classmethod
    async def connect(cls, conninfo: str = "", *, settings: Mapping[str, str], **options: Any) -> Self:  # type: ignore[override] # settings are ours
        """Connect and set. Raises RefusedError where a server answers and refuses; psycopg.Error."""
        try:
            connection = await super().connect(conninfo, **options)
        except psycopg.OperationalError as error:
            raise_refusal(error)
        try:
            cursor = await connection.execute(connection.setting(settings).encode())
            cursor.nextset()
            _, read_only, server_pid = await cursor.fetchone() or (None, None, 0)
            connection.take_set(read_only, server_pid)
        except BaseException:
            await connection.close()
            raise
        HEALTH.accepted(POSTGRES)
        return connection

    async def ask_again(self) -> None:
        """Whether it still may write, in its own session."""
        row = await (await self.execute(QUESTION)).fetchone()
        self.hear(*(row or (None, None)))


def server_pid(connection: psycopg.Connection[Any]) -> int:
    """The process that serves it."""
    return connection.server_pid if isinstance(connection, PinnedConnection) else connection.info.backend_pid


def refuse_read_only(answer: object) -> None:
    """Raise ReadOnlySqlTransaction unless that is what a session that may write says to `transaction_read_only`."""
    if answer != "off":
        raise errors.ReadOnlySqlTransaction(
            "this server takes no writes: it is a standby, or the database was made read-only"
        )


def ask(connection: psycopg.Connection[Any], question: str) -> list[str | None]:
    """The one row that `question` gives, as text, outside of any transaction of the driver's. Raises psycopg.Error."""
    if connection.closed:
        raise psycopg.OperationalError("the connection to Postgres has ended")
    result = connection.pgconn.exec_(question.encode())
    if result.status != ExecStatus.TUPLES_OK:
        if connection.pgconn.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection to Postgres was lost")
        raise errors.error_from_result(result)
    values = (result.get_value(0, column) for column in range(result.nfields))
    return [None if value is None else value.decode() for value in values]
