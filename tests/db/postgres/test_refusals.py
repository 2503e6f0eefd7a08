"""A server that refuses is told from one that is away: one of them passes by itself."""

from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError

from db.postgres.engine import make_engine, transaction
from db.postgres.failures import Failure, diagnose, driver_error, is_away
from db.postgres.refusals import RefusedError, raise_refusal
from metering.runtime import health
from metering.runtime.health import HEALTH, POSTGRES
from metering.sandbox.servers.embedded import running
from tests.conftest import Database
from tests.db import execute_as


def fails_with(url: str, statement: str = "SELECT 1") -> Exception:
    engine = make_engine(url, application_name="tests")
    try:
        with pytest.raises((DBAPIError, psycopg.Error)) as raised, transaction(engine) as connection:
            connection.execute(text(statement))
        return raised.value
    finally:
        engine.dispose()


def with_password(url: URL, password: str | None) -> str:
    return url.set(password=password).render_as_string(hide_password=False)


def reasons() -> list[str]:
    return [each.reason for each in HEALTH.refusals()]


def test_a_database_that_is_not_there_is_no_outage(database: Database) -> None:
    error = fails_with(make_url(database.url).set(database="nowhere").render_as_string(hide_password=False))
    assert diagnose(error) is Failure.REFUSED
    assert is_away(error)
    assert isinstance(driver_error(error), RefusedError)
    assert "nowhere" in reasons()[0]
    database.engine.dispose()
    database.engine.connect().close()
    assert reasons() == []


def test_a_server_that_nobody_hears_is_an_outage(tmp_path: Path) -> None:
    error = fails_with(f"postgresql+psycopg://u@/name?host={tmp_path}")
    assert diagnose(error) is Failure.OUTAGE
    assert reasons() == []


def test_a_wrong_password_and_one_that_is_right_again(tmp_path: Path) -> None:
    with running(tmp_path / "servers", valkey=False) as servers:
        execute_as(servers.admin_database_url, "CREATE ROLE clerk LOGIN PASSWORD 'right'")
        rules = tmp_path / "servers" / "postgres" / "pg_hba.conf"
        rules.write_text("local all clerk scram-sha-256\n" + rules.read_text())
        execute_as(servers.admin_database_url, "SELECT pg_reload_conf()")
        url = make_url(servers.database_url).set(username="clerk")
        for wrong in (None, "wrong"):
            error = fails_with(with_password(url, wrong))
            assert diagnose(error) is Failure.REFUSED
            assert reasons()
        right = make_engine(with_password(url, "right"), application_name="t")
        right.connect().close()
        right.dispose()
        assert reasons() == []


def test_too_many_connections_pass_by_themselves(tmp_path: Path) -> None:
    with running(tmp_path / "servers", valkey=False) as servers:
        execute_as(servers.admin_database_url, "CREATE ROLE clerk LOGIN CONNECTION LIMIT 0")
        url = make_url(servers.database_url).set(username="clerk").render_as_string(hide_password=False)
        assert diagnose(fails_with(url)) is Failure.OUTAGE


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT * FROM nowhere", errors.UndefinedTable),
        ("UPDATE api_keys SET org_id = 1", errors.InsufficientPrivilege),
        ("SELECT nothing(1)", errors.UndefinedFunction),
    ],
)
def test_a_statement_that_is_refused_is_told(
    database: Database, statement: str, kind: type[psycopg.Error], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(database.url).set(username="metering_meter").render_as_string(hide_password=False)
    error = fails_with(url, statement)
    assert isinstance(driver_error(error), kind)
    assert diagnose(error) is Failure.REFUSED
    assert reasons()
    monkeypatch.setattr(health, "STATEMENT_LASTS_S", 0.0)
    assert reasons() == []


@pytest.mark.parametrize(
    "said",
    [
        "FATAL:  server login has been failing, try again later (server_login_retry)",
        "FATAL:  pgbouncer cannot connect to server",
        "FATAL:  query_wait_timeout",
        "FATAL:  sorry, too many clients already",
        "FATAL:  the database system is starting up",
        "session is read-only",
        "server is in hot standby mode",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
    ],
)
def test_what_a_server_or_a_pooler_says_that_passes(said: str) -> None:
    with pytest.raises(psycopg.OperationalError) as raised:
        raise_refusal(psycopg.OperationalError(said))
    assert diagnose(raised.value) is Failure.OUTAGE


@pytest.mark.parametrize(
    "said",
    [
        "SSL error: certificate verify failed",
        'root certificate file "x" does not exist',
        "server does not support SSL",
    ],
)
def test_what_the_driver_itself_refuses(said: str) -> None:
    with pytest.raises(RefusedError):
        raise_refusal(psycopg.OperationalError(said))
    assert HEALTH.refusals()[0].server == POSTGRES


def test_what_another_server_than_postgres_does_not_know_is_a_refusal() -> None:
    """Citus refuses some statements, a pooler in transaction mode prepared ones; a driver dates that it can't read."""
    for error in (
        errors.FeatureNotSupported(),
        errors.DuplicatePreparedStatement(),
        errors.InvalidPassword(),
        errors.InvalidCatalogName(),
        psycopg.NotSupportedError("can't parse timestamptz with DateStyle 'German, DMY'"),
    ):
        assert diagnose(error) is Failure.REFUSED
