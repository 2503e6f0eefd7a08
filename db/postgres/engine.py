"""Connections to Postgres, and the one place that commits."""

import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url

from db.postgres.exchange import COMMIT, Statement, exchange
from db.postgres.failures import Failure, diagnose, driver_error, says_read_only
from db.postgres.refusals import RefusedError
from db.postgres.session import PinnedConnection, session_settings
from db.postgres.writable import ask_again, use_writable_only
from metering.runtime.crashpoints import CrashPoint, reach
from metering.runtime.health import HEALTH, POSTGRES

_state = threading.local()
_LAST: Final = "metering: last statement"
"""In a connection's `info`: what goes with the COMMIT."""


def make_engine(
    url: str,
    *,
    application_name: str,
    pool_size: int = 2,
    lock_timeout_ms: int = 0,
    statement_timeout_ms: int = 0,
) -> Engine:
    """An engine for `url`, whose connections may write (`db.postgres.writable`). Nothing connects yet.

    A statement waits at most `lock_timeout_ms` for a lock, and takes at most `statement_timeout_ms`; 0 is without limit.

    READ COMMITTED is asked for by name: the ledger's second statement must see what was committed while its first one waited.
    """
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # errors get into logs, and what is written may be a client's secret
        pool_timeout=30,
        connect_args={
            **connect_args(make_url(url), application_name),
            # What is hot is prepared by db.postgres.exchange. After a rollback psycopg has the session forget all that
            # anybody has prepared, if it has prepared anything itself.
            "prepare_threshold": None,
        },
    )
    settings = session_settings(lock_timeout_ms=lock_timeout_ms, statement_timeout_ms=statement_timeout_ms)

    def connect(_dialect: object, _entry: object, _arguments: object, options: dict[str, Any]) -> object:
        return PinnedConnection.connect(settings=settings, **options)

    def failed(context: ExceptionContext) -> None:
        _tell_refusal(context.original_exception)

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "handle_error", failed)
    use_writable_only(engine)
    return engine


def connect_args(url: URL, application_name: str) -> dict[str, Any]:
    """What every connection of ours is opened with: within 8 s it notices where the other end is gone without a word.

    Text goes as UTF-8, whatever the environment, the role or the database has set: `db.ledger.debit_rows` and
    `db.postgres.exchange` write and read it themselves.
    """
    several = "," in _driver_args(url).get("host", "")
    return {
        **({"target_session_attrs": "read-write"} if several else {}),
        "application_name": application_name,
        "client_encoding": "utf8",
        "connect_timeout": 5,
        "keepalives_idle": 4,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 8_000,
    }


def psycopg_url(url: URL) -> str:
    """The same place as psycopg alone has it, in keys and values; with the password."""
    return make_conninfo(**_driver_args(url))


def _driver_args(url: URL) -> MutableMapping[str, Any]:
    """What psycopg is given for `url`. Raises sqlalchemy.exc.ArgumentError where it makes no sense."""
    return url.get_dialect()().create_connect_args(url)[1]


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed if the block ends, rolled back if it raises.

    The only place that commits what roles and commands write; only migrations commit for themselves. While it is open nothing may
    be said to Redis or Stripe (`in_transaction` lets the tests see to that).
    """
    with engine.connect() as connection:
        connection.info.pop(_LAST, None)
        connection.begin()  # by hand: SQLAlchemy doesn't see what is done on the driver's connection, and would commit nothing
        _state.open = True
        try:
            yield connection
            reach(CrashPoint.METER_BEFORE_COMMIT)
            _commit(connection)
        except BaseException as error:
            _tell_refusal(error)
            # Where SQLAlchemy has seen it die (at the commit), asking for the driver's connection would hide this error.
            if not connection.invalidated:
                if says_read_only(error) or not _can_roll_back(driver_connection(connection)):
                    connection.invalidate()  # or the pool would try to roll back, and log that it can't
                    engine.dispose()  # its other connections may have gone the same way: each would fail somebody first
                else:
                    ask_again(driver_connection(connection))
            raise
        finally:
            _state.open = False


def execute_last(connection: Connection, statement: Statement, values: Sequence[bytes]) -> None:
    """Have a statement sent with the COMMIT of this transaction, after others that are: so it has no round trip of its own.

    The transaction itself doesn't see what it does. What it fails with is raised by the commit, which then doesn't happen.
    """
    connection.info.setdefault(_LAST, []).append((statement, values))


def _commit(connection: Connection) -> None:
    last = connection.info.pop(_LAST, None)
    if last is None:
        connection.commit()
        return
    exchange(driver_connection(connection), [*last, (COMMIT, ())])
    connection.commit()  # for SQLAlchemy; the driver has nothing left to commit


def _tell_refusal(error: BaseException) -> None:
    """Have this process's health tell of a statement that Postgres refuses; of connections whoever connects tells."""
    cause = driver_error(error)
    if cause is not None and not isinstance(cause, RefusedError) and diagnose(cause) is Failure.REFUSED:
        HEALTH.statement_refused(POSTGRES, str(cause))


def _can_roll_back(driver: psycopg.Connection) -> bool:
    """Not where it is closed, nor where a statement still runs: as libpq has it when a connection is lost within a COPY."""
    return not driver.closed and driver.info.transaction_status != TransactionStatus.ACTIVE


def in_transaction() -> bool:
    """Whether this thread has a transaction open."""
    return getattr(_state, "open", False)


def driver_connection(connection: Connection) -> psycopg.Connection:
    """The psycopg connection under `connection`, for COPY and for statements whose speed matters."""
    found = connection.connection.driver_connection
    if not isinstance(found, psycopg.Connection):
        raise TypeError(
            f"the database URL must name the driver psycopg (postgresql+psycopg://...), not {type(found)}"
        )
    return found
