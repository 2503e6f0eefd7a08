"""What is sent with a COMMIT is committed with it or not at all, and belongs to one transaction."""

import logging
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import text

from db.ledger.post_calls import lock_accounts
from db.postgres.arrays import bigints
from db.postgres.engine import driver_connection, execute_last, transaction
from db.postgres.exchange import Statement
from db.postgres.failures import driver_error
from tests.conftest import Database
from tests.db import execute_as

SET_VERSION = Statement("test", "UPDATE accounts SET version = $1[1] * 4 WHERE org_id = 1", ("int8[]",))
"""Refuses a number that is too large, and only as it runs."""
TOO_LARGE = 2**62


@pytest.fixture
def orgs(database: Database) -> Database:
    with transaction(database.engine) as connection:
        connection.execute(
            text(
                "INSERT INTO accounts (org_id, name, created_at) VALUES (1, 'one', now()), (2, 'two', now())"
            )
        )
    return database


def versions(database: Database) -> list[int]:
    with transaction(database.engine) as connection:
        return list(connection.scalars(text("SELECT version FROM accounts ORDER BY org_id")))


def set_both(database: Database, last: int, *, then: Exception | None = None) -> None:
    """Set the second org's version to 2, and with the COMMIT the first's to four times `last`; unless something happens then."""
    with transaction(database.engine) as connection:
        execute_last(connection, SET_VERSION, [bigints([last])])
        connection.execute(text("UPDATE accounts SET version = 2 WHERE org_id = 2"))
        if then is not None:
            raise then


def test_the_last_statement_is_committed_with_what_went_before(orgs: Database) -> None:
    set_both(orgs, 1)
    assert versions(orgs) == [4, 2]


def test_where_it_fails_nothing_is_committed_and_the_connection_goes_on(orgs: Database) -> None:
    for _ in range(2):
        with pytest.raises(Exception, match="out of range") as raised:
            set_both(orgs, TOO_LARGE)
        assert isinstance(driver_error(raised.value), errors.NumericValueOutOfRange)
    assert versions(orgs) == [0, 0]


def test_what_was_to_be_sent_is_forgotten_with_its_transaction(orgs: Database) -> None:
    with pytest.raises(psycopg.OperationalError):
        set_both(orgs, 1, then=psycopg.OperationalError("away for a moment"))
    for _ in range(2):  # through the same connection, the second time after the first one's COMMIT
        assert versions(orgs) == [0, 0]


def test_what_fails_while_a_statement_still_runs_is_told_as_it_is(
    orgs: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a connection is lost within a COPY: a rollback would only fail as well, and hide it."""

    def fail_within_a_statement() -> None:
        with transaction(orgs.engine) as connection:
            driver_connection(connection).pgconn.send_query(b"SELECT pg_sleep(60)")
            raise psycopg.OperationalError("lost")

    with caplog.at_level(logging.ERROR), pytest.raises(psycopg.OperationalError, match=r"^lost$"):
        fail_within_a_statement()
    assert caplog.messages == []
    assert versions(orgs) == [0, 0]


def test_sessions_that_were_ended_fail_only_who_has_one_in_hand(orgs: Database) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(orgs.engine.connect()) for _ in range(4)]
        pids = [each.scalar(text("SELECT pg_backend_pid()")) for each in held]

    def lock(*ended: int) -> None:
        with transaction(orgs.engine) as connection:
            for pid in ended:
                execute_as(orgs.admin_url, f"SELECT pg_terminate_backend({pid}, 5000)")
            lock_accounts(driver_connection(connection), [1])

    with pytest.raises(psycopg.OperationalError):
        lock(*pids)
    for _ in pids:
        lock()
