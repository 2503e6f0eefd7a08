"""Whatever somebody has set for the database, our sessions are set to what our statements count on."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis
from sqlalchemy import Engine, make_url, text

from db.postgres.engine import driver_connection, make_engine, transaction
from db.postgres.failures import Failure, diagnose
from db.postgres.schema import check_schema
from db.postgres.session import PinnedConnection, SharedSessionError, server_pid
from tests.conftest import Database
from tests.db import execute_as
from tests.spine.billing import assert_sound, balances, event, prepare, price, push, run_meters

FOREIGN = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Chatham",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "search_path": "elsewhere",
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "statement_timeout": "3s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "3s",
    "transaction_timeout": "3s",
}
"""What anybody may set for a database; each breaks something of ours."""


def set_for(database: Database, **settings: str) -> None:
    name = make_url(database.admin_url).database
    elsewhere = make_url(database.admin_url).set(database="postgres").render_as_string(hide_password=False)
    for setting, value in settings.items():
        execute_as(elsewhere, f"ALTER DATABASE {name} SET {setting} = '{value}'")


@pytest.fixture
def foreign(database: Database) -> Iterator[Engine]:
    """An engine on a database where all of it is set."""
    version = int(execute(database, "SHOW server_version_num"))
    set_for(
        database, **{k: v for k, v in FOREIGN.items() if k != "transaction_timeout" or version >= 170_000}
    )
    made = make_engine(database.url, application_name="tests", lock_timeout_ms=20_000)
    yield made
    made.dispose()


def execute(database: Database, question: str) -> str:
    with database.engine.connect() as connection:
        return str(connection.scalar(text(question)))


def test_a_session_is_set_to_what_our_statements_count_on(foreign: Engine) -> None:
    wanted = {
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "search_path": "public",
        "client_encoding": "UTF8",
        "default_transaction_isolation": "read committed",
        "transaction_isolation": "read committed",
        "synchronous_commit": "on",
        "statement_timeout": "0",
        "lock_timeout": "20s",
        "idle_in_transaction_session_timeout": "0",
    }
    with transaction(foreign) as connection:
        assert {name: connection.scalar(text(f"SHOW {name}")) for name in wanted} == wanted
        now = connection.scalar(text("SELECT now()"))
    assert abs(datetime.now(UTC) - now).total_seconds() < 60
    with transaction(foreign) as connection:  # of the pool, after a transaction that has ended
        assert connection.scalar(text("SHOW DateStyle")) == "ISO, MDY"


def test_calls_are_billed_there(foreign: Engine, redis_client: redis.Redis) -> None:
    check_schema(foreign)
    prepare(foreign, org_ids=[1], prices=[price("bolt", "0.08")])
    push(redis_client, [event(call_id=number, org_id=1) for number in range(1, 6)])
    run_meters(foreign, redis_client)
    assert balances(foreign) == {1: -5 * 16}
    assert_sound(foreign)


@pytest.mark.parametrize("promises", ["remote_apply", "local"])
def test_a_commit_that_promises_more_than_nothing_is_left_as_it_is(database: Database, promises: str) -> None:
    set_for(database, synchronous_commit=promises)
    engine = make_engine(database.url, application_name="tests")
    with transaction(engine) as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == promises
    engine.dispose()


def test_what_was_set_in_another_session_is_missed(database: Database) -> None:
    """As where PgBouncer's pool_mode is transaction; tests/external_servers/ has it in between."""
    engine = make_engine(database.url, application_name="tests", pool_size=1)
    with engine.connect() as connection:
        driver = driver_connection(connection)
        connection.rollback()
        assert isinstance(driver, PinnedConnection)
        assert server_pid(driver) == driver.info.backend_pid
        driver.ask_again()
        driver.pgconn.exec_(b"DISCARD ALL")
        with pytest.raises(SharedSessionError, match=r"pool_mode be session") as raised:
            driver.ask_again()
    assert diagnose(raised.value) is Failure.REFUSED
    engine.dispose()


def test_the_driver_is_told_the_url_alone(database: Database) -> None:
    """PgBouncer refuses a start-up parameter that it doesn't know, `options` among them."""
    with database.engine.connect() as connection:
        said = {each.keyword: each.val for each in driver_connection(connection).pgconn.info}
    assert not said[b"options"]
