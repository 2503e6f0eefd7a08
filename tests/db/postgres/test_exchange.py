"""Statements that are asked together are taken one after the other, all of them or none after the first that fails."""

import struct
from collections.abc import Iterator
from datetime import datetime
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors
from psycopg.pq import TransactionStatus
from sqlalchemy import text
from sqlalchemy.engine import make_url

from db.postgres.arrays import bigints, instants
from db.postgres.engine import driver_connection, psycopg_url
from db.postgres.exchange import COMMIT, Statement, exchange
from db.postgres.instants import instant, microseconds
from tests.conftest import Database

TIMES = st.lists(st.builds(instant, st.integers(-(10**15), 10**15)), max_size=20)
BIGINTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50)
ECHO = Statement("test_echo", "SELECT unnest($1)", ("int8[]",))
ECHO_TIMES = Statement(
    "test_echo_times", "SELECT at, at::text FROM unnest($1) AS given (at)", ("timestamptz[]",)
)
DIVIDE = Statement("test_divide", "SELECT 1 / unnest($1)", ("int8[]",))
MAKE = Statement("test_make", "CREATE TEMPORARY TABLE made (number bigint)")
INSERT = Statement("test_insert", "INSERT INTO made SELECT unnest($1)", ("int8[]",))
COUNT = Statement("test_count", "SELECT count(*) FROM made")
LONG = Statement("test_long", "SELECT repeat('x', 10000) FROM unnest($1)", ("int8[]",))
WAIT = Statement("test_wait", "SELECT pg_sleep(60)")


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(psycopg_url(make_url(database.url))) as connection:
        yield connection


def status(connection: psycopg.Connection) -> int:
    return connection.info.transaction_status


def test_numbers_come_back_as_they_went(connection: psycopg.Connection) -> None:
    @given(BIGINTS)
    def check(numbers: list[int]) -> None:
        [rows] = exchange(connection, [(ECHO, [bigints(numbers)])])
        assert rows == [(number,) for number in numbers]

    check()


def test_times_come_back_as_they_went(connection: psycopg.Connection) -> None:
    connection.execute("SET TIME ZONE 'UTC'")

    @given(TIMES)
    def check(times: list[datetime]) -> None:
        [rows] = exchange(connection, [(ECHO_TIMES, [instants([microseconds(at) for at in times])])])
        assert [instant(kept_us) for kept_us, _ in rows] == times
        assert [datetime.fromisoformat(f"{spelt}:00") for _, spelt in rows] == times

    check()


def test_a_number_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(struct.error):
        bigints([2**63])


def test_each_sees_what_those_before_it_did(connection: psycopg.Connection) -> None:
    answers = exchange(connection, [(MAKE, []), (INSERT, [bigints([7, 8])]), (COUNT, []), (COMMIT, [])])
    assert answers == [[], [], [(2,)], []]
    assert status(connection) == TransactionStatus.IDLE
    assert exchange(connection, [(COUNT, [])]) == [[(2,)]]
    assert status(connection) == TransactionStatus.INTRANS


def test_what_is_long_goes_out_and_comes_in(connection: psycopg.Connection) -> None:
    """Both at once are more than the socket takes: each side has to listen while it speaks."""
    numbers = list(range(300_000))
    long, echoed = exchange(connection, [(LONG, [bigints(numbers[:500])]), (ECHO, [bigints(numbers)])])
    assert [len(row[0]) for row in long] == [10_000] * 500
    assert [row[0] for row in echoed] == numbers


def test_after_the_first_that_fails_none_runs(connection: psycopg.Connection) -> None:
    exchange(connection, [(MAKE, []), (COMMIT, [])])
    for _ in range(2):  # known to the connection or not
        with pytest.raises(errors.DivisionByZero):
            exchange(
                connection,
                [
                    (INSERT, [bigints([1])]),
                    (DIVIDE, [bigints([1, 0])]),
                    (INSERT, [bigints([2])]),
                    (COMMIT, []),
                ],
            )
        assert status(connection) == TransactionStatus.INERROR
        connection.rollback()
        assert exchange(connection, [(COUNT, []), (COMMIT, [])]) == [[(0,)], []]


def test_one_that_cannot_be_prepared_is_tried_again(connection: psycopg.Connection) -> None:
    with pytest.raises(errors.UndefinedTable):
        exchange(connection, [(COUNT, [])])
    connection.rollback()
    assert exchange(connection, [(MAKE, []), (COUNT, [])]) == [[], [(0,)]]


def test_statements_that_were_forgotten_are_prepared_again(connection: psycopg.Connection) -> None:
    exchange(connection, [(ECHO, [bigints([1])]), (COMMIT, [])])
    connection.execute("DEALLOCATE ALL")
    connection.rollback()
    with pytest.raises(errors.InvalidSqlStatementName):
        exchange(connection, [(ECHO, [bigints([1])])])
    connection.rollback()
    assert exchange(connection, [(ECHO, [bigints([2])])]) == [[(2,)]]


def test_a_rollback_has_nothing_forgotten(database: Database) -> None:
    """psycopg's own does, once it has prepared anything."""
    for turn in range(3):
        with database.engine.connect() as connection:
            for number in range(10):
                connection.execute(text("SELECT CAST(:number AS bigint)"), {"number": number})
            assert exchange(driver_connection(connection), [(ECHO, [bigints([turn])])]) == [[(turn,)]]
            connection.rollback()


def test_a_session_that_is_ended_is_an_error_and_leaves_the_connection_closed(
    connection: psycopg.Connection, database: Database
) -> None:
    exchange(connection, [(ECHO, [bigints([1])]), (COMMIT, [])])
    with psycopg.connect(psycopg_url(make_url(database.admin_url)), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        exchange(connection, [(ECHO, [bigints([1])]), (COMMIT, [])])
    assert connection.closed


def test_interrupted_while_it_waits_it_closes_the_connection(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be answered next belongs to a question that nobody remembers."""

    class Interrupted:
        def register(self, *_: int) -> None:
            pass

        def poll(self) -> list[tuple[int, int]]:
            raise KeyboardInterrupt

    monkeypatch.setattr("db.postgres.exchange.select.poll", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        exchange(connection, [(WAIT, [])])
    assert connection.closed


def test_a_name_that_no_statement_has_is_no_matter_of_other_connections(
    connection: psycopg.Connection, database: Database
) -> None:
    once = Statement(f"test_{uuid4().hex}", "SELECT 1::bigint")
    assert exchange(connection, [(once, [])]) == [[(1,)]]
    with psycopg.connect(psycopg_url(make_url(database.url))) as other:
        assert exchange(other, [(once, [])]) == [[(1,)]]
