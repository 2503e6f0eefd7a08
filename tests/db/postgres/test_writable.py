"""Nobody stays on a connection that may not write."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from db.accounts.quick_reads import QuickReads
from db.postgres import writable
from db.postgres.arrays import bigints
from db.postgres.engine import (
    connect_args,
    driver_connection,
    execute_last,
    make_engine,
    psycopg_url,
    transaction,
)
from db.postgres.exchange import Statement, exchange
from db.postgres.failures import Failure, diagnose, driver_error
from tests.conftest import Database
from tests.db import execute_as, made_read_only

INSERT = "INSERT INTO accounts (org_id, name, created_at) VALUES (1, 'one', now())"
INSERT_ONE = Statement("insert_one", INSERT)
SET_VERSION = Statement("set_version", "UPDATE accounts SET version = $1[1] WHERE org_id = 1", ("int8[]",))


@pytest.fixture(autouse=True)
def _asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, nobody is asked again of his own accord, unless the test has it so."""
    monkeypatch.setattr(writable, "ASK_AGAIN_AFTER_S", 3_600.0)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """With one connection, so that whoever is next gets it."""
    made = make_engine(database.url, application_name="tests", pool_size=1)
    yield made
    made.dispose()


def backend(engine: Engine) -> int:
    with transaction(engine) as connection:
        pid: int = connection.scalar(text("SELECT pg_backend_pid()"))
        return pid


def demote(engine: Engine) -> int:
    """Make the pool's connection one that reads only, as a pooler does that leads to a demoted server; give its process's id."""
    with transaction(engine) as connection:
        connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
        pid: int = connection.scalar(text("SELECT pg_backend_pid()"))
        return pid


def by_sql(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text(INSERT))


def in_one_exchange(engine: Engine) -> None:
    with transaction(engine) as connection:
        exchange(driver_connection(connection), [(INSERT_ONE, ())])


def with_the_commit(engine: Engine) -> None:
    with transaction(engine) as connection:
        execute_last(connection, SET_VERSION, [bigints([2])])


def by_copy(engine: Engine) -> None:
    with transaction(engine) as connection:
        cursor = driver_connection(connection).cursor()
        with cursor.copy("COPY accounts (org_id, name, created_at) FROM STDIN") as copy:
            copy.write(b"1\tone\tnow\n")


def by_lock(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(text("SELECT 1 FROM accounts FOR UPDATE"))


WAYS = [by_sql, in_one_exchange, with_the_commit, by_copy, by_lock]


@pytest.mark.parametrize("write", WAYS)
def test_a_connection_that_says_read_only_is_left_at_once(
    engine: Engine, write: Callable[[Engine], None]
) -> None:
    demoted = demote(engine)
    with pytest.raises((DBAPIError, psycopg.Error)) as raised:
        write(engine)
    assert isinstance(driver_error(raised.value), errors.ReadOnlySqlTransaction)
    assert diagnose(raised.value) is Failure.OUTAGE
    assert backend(engine) != demoted
    write(engine)


def test_who_only_reads_leaves_it_within_seconds(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    demoted = demote(engine)
    assert backend(engine) == demoted, "no round trip for each transaction"
    monkeypatch.setattr(writable, "ASK_AGAIN_AFTER_S", 0.0)
    assert backend(engine) != demoted


def test_whatever_fails_on_it_has_it_asked_before_it_is_used_again(engine: Engine) -> None:
    """Postgres has several ways to say that a server recovers: 55000, 0A000."""
    demoted = demote(engine)
    with pytest.raises(ZeroDivisionError), transaction(engine):
        raise ZeroDivisionError
    assert backend(engine) != demoted


@pytest.mark.parametrize("ended", [1, 3])
def test_connections_that_were_ended_while_idle_fail_nobody(database: Database, ended: int) -> None:
    engine = make_engine(database.url, application_name="ended idle", pool_size=ended)
    with in_use(engine, ended):
        pass
    execute_as(
        database.admin_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'ended idle'",
    )
    for _ in range(ended):
        by_reading(engine)
    engine.dispose()


@contextmanager
def in_use(engine: Engine, number: int) -> Iterator[None]:
    """So many connections of the pool in use at once."""
    held = [engine.connect() for _ in range(number)]
    yield
    for connection in held:
        connection.close()


def by_reading(engine: Engine) -> None:
    with transaction(engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_database_that_is_made_read_only_is_an_outage_until_it_is_not(database: Database) -> None:
    engine = make_engine(database.url, application_name="tests", pool_size=1)
    with made_read_only(database.admin_url):
        for write in (by_sql, by_reading):
            with pytest.raises(DBAPIError) as raised:
                write(engine)
            assert isinstance(driver_error(raised.value), errors.ReadOnlySqlTransaction)
            assert diagnose(raised.value) is Failure.OUTAGE
    by_sql(engine)
    engine.dispose()


def test_quick_reads_leave_it_too(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that reads a standby would answer with old balances for as long as it lives."""
    url = make_url(database.url)

    async def asked(reads: QuickReads) -> bool:
        try:
            return await reads.org_of_key("nobody's") is None
        except psycopg.Error:
            return False

    async def until_asked(reads: QuickReads) -> None:
        async with asyncio.timeout(20):
            while not await asked(reads):  # noqa: ASYNC110 - it is asked, not told
                await asyncio.sleep(0.02)

    async def ask() -> None:
        reads = QuickReads(url, application_name="quick")
        await reads.open()
        await until_asked(reads)
        with made_read_only(database.admin_url):
            assert not await asked(reads)
        await until_asked(reads)
        # A pooler in between: the connection stays, what it leads to doesn't.
        monkeypatch.setattr(writable, "ASK_AGAIN_AFTER_S", 0.0)
        async with reads._pool.connection() as connection:
            await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            demoted = connection.info.backend_pid
        await until_asked(reads)
        async with reads._pool.connection() as connection:
            assert connection.info.backend_pid != demoted
        await reads.close()

    asyncio.run(ask())


def test_a_server_that_starts_is_an_outage() -> None:
    """57P03, as of one that was just promoted; what libpq says while connecting has no SQLSTATE."""
    for error in (
        errors.CannotConnectNow(),
        errors.AdminShutdown(),
        psycopg.OperationalError("session is read-only"),
    ):
        assert diagnose(error) is Failure.OUTAGE


def test_of_several_hosts_the_one_that_writes_is_wanted(database: Database) -> None:
    url = make_url("postgresql+psycopg://u@/name?host=h1,h2&port=5432,5433")
    assert connect_args(url, "tests")["target_session_attrs"] == "read-write"
    assert "host=h1,h2 port=5432,5433" in psycopg_url(url)
    assert "target_session_attrs" not in connect_args(make_url(database.url), "tests")


def test_the_first_of_several_hosts_may_be_away(database: Database) -> None:
    url = make_url(database.url)
    host = url.query["host"]
    several = url.set(query={"host": f"/nowhere,{host}", "port": "5432,5432"})
    engine = make_engine(several.render_as_string(hide_password=False), application_name="tests")
    by_sql(engine)
    engine.dispose()
