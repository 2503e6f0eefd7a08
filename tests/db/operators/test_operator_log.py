"""The log of operators: in the transaction of the change, by Postgres's clock, and never changed again by anybody."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from psycopg import errors
from sqlalchemy import Engine, make_url, text

from db.accounts.orgs import create_org
from db.operators.log import Actor, OperatorRevokedError, list_log, log_action
from db.operators.operators import OperatorError, add_operator, find_operator, revoke_operator
from db.postgres.engine import transaction
from metering.rules.operators import OperatorRole
from tests.conftest import Database
from tests.db import execute_as
from tests.waiting import wait_until

LOGIN = Actor("root", "root")
USERS = (
    "metering_owner",
    "metering_app",
    "metering_meter",
    "metering_api",
    "metering_jobs",
)  # of deploy/postgres/roles.sql


def add(engine: Engine, name: str, role: OperatorRole = OperatorRole.MONEY) -> Actor:
    """Add an operator, and give him as he acts."""
    with transaction(engine) as connection:
        made = add_operator(connection, LOGIN, name, role)
    return Actor(name, "root", made.operator_id)


def make_org(engine: Engine, actor: Actor) -> None:
    """Org 1, with its entry in the log."""
    with transaction(engine) as connection:
        create_org(connection, "Acme", datetime.now(UTC))
        log_action(connection, actor, "org create", org_id=1)


def url_of(database: Database, user: str) -> str:
    return make_url(database.admin_url).set(username=user).render_as_string(hide_password=False)


CHANGES = [
    "UPDATE operator_log SET operator = 'x'",
    "UPDATE operator_log SET operator = operator WHERE false",
    "DELETE FROM operator_log",
    "DELETE FROM operator_log WHERE false",
    "TRUNCATE operator_log",
    "MERGE INTO operator_log USING operators ON true WHEN MATCHED THEN DELETE",
    "INSERT INTO operator_log (operator, login, action, details, at) VALUES ('x', 'x', 'x', '{}', '2020-01-01')",
    "INSERT INTO operator_log (operator, login, action, id) OVERRIDING SYSTEM VALUE VALUES ('x', 'x', 'x', 1)",
]


@pytest.mark.parametrize("user", [*USERS, "superuser"])
def test_no_user_can_change_what_is_written(database: Database, user: str) -> None:
    add(database.engine, "maria")
    with database.engine.connect() as connection:
        before = connection.execute(text("TABLE operator_log")).all()
    assert len(before) == 1
    url = database.admin_url if user == "superuser" else url_of(database, user)
    by_right = user in ("superuser", "metering_owner")
    for statement in CHANGES[:6]:
        wanted = errors.IntegrityConstraintViolation if by_right else errors.InsufficientPrivilege
        with pytest.raises(wanted):
            execute_as(url, statement)
    if not by_right:
        for statement in CHANGES[6:]:
            with pytest.raises(errors.InsufficientPrivilege):
                execute_as(url, statement)
    with database.engine.connect() as connection:
        assert connection.execute(text("TABLE operator_log")).all() == before


@pytest.mark.parametrize("user", ["metering_meter", "metering_api", "metering_jobs"])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM operators",
        "SELECT * FROM operator_log",
        "INSERT INTO operators (name, role, token_sha256, hint) VALUES ('x', 'money', 'x', 'x')",
        "INSERT INTO operator_log (operator, login, action) VALUES ('x', 'x', 'x')",
        "UPDATE operators SET revoked_at = now()",
    ],
)
def test_roles_that_serve_the_outside_know_nothing_of_operators(
    database: Database, user: str, statement: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        execute_as(url_of(database, user), statement)


def test_an_operator_s_role_name_and_token_stay_and_revoked_is_for_ever(database: Database) -> None:
    actor = add(database.engine, "maria")
    add(database.engine, "joe")
    for column in ("role = 'money'", "name = 'x'", "token_sha256 = 'x'", "created_at = now()"):
        with pytest.raises(errors.InsufficientPrivilege):
            execute_as(database.url, f"UPDATE operators SET {column}")  # noqa: S608 - our own words
    with transaction(database.engine) as connection:
        revoke_operator(connection, actor, "joe")
    for statement in (
        "UPDATE operators SET revoked_at = NULL WHERE name = 'joe'",
        "DELETE FROM operators WHERE name = 'joe'",
        "TRUNCATE operators",
    ):
        with pytest.raises(errors.IntegrityConstraintViolation):
            execute_as(database.owner_url, statement)
    # Not dated otherwise than now.
    execute_as(database.url, "UPDATE operators SET revoked_at = '2020-01-01' WHERE name = 'maria'")
    with database.engine.connect() as connection:
        assert connection.scalar(
            text("SELECT bool_and(revoked_at > now() - interval '1 minute') FROM operators")
        )


def test_it_is_written_with_the_change_or_not_at_all(database: Database) -> None:
    actor = add(database.engine, "maria")
    with database.engine.connect() as connection:
        log_action(connection, actor, "org create", org_id=1)
        connection.rollback()
    with transaction(database.engine) as connection:
        assert list_log(connection, limit=9, org_id=1) == ([], 0)
        log_action(
            connection, actor, "adjust", org_id=1, subject=7, reason="wrong price", details={"cents": 5}
        )
        before = connection.scalar(text("SELECT clock_timestamp()"))
    with database.engine.connect() as connection:
        ((entry,), total) = list_log(connection, limit=9, org_id=1)
    assert total == 1
    assert (entry.operator, entry.operator_id, entry.action, entry.org_id) == (
        "maria",
        actor.operator_id,
        "adjust",
        1,
    )
    assert (entry.subject, entry.reason, entry.details, entry.refused) == (
        "7",
        "wrong price",
        {"cents": 5},
        False,
    )
    assert before is not None
    assert entry.at <= before


def test_what_is_revoked_changes_nothing_more_not_even_what_had_begun(database: Database) -> None:
    maria, joe = add(database.engine, "maria"), add(database.engine, "joe")
    with transaction(database.engine) as connection:
        revoke_operator(connection, maria, "joe")
    with pytest.raises(OperatorRevokedError, match="joe was revoked"):
        make_org(database.engine, joe)
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM accounts")) == 0


def test_a_revocation_waits_for_the_change_that_is_being_made(database: Database) -> None:
    maria, joe = add(database.engine, "maria"), add(database.engine, "joe")
    revoked = threading.Event()

    def revoke() -> None:
        with transaction(database.engine) as connection:
            revoke_operator(connection, maria, "joe")
        revoked.set()

    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as threads:
        with transaction(database.engine) as connection:
            log_action(connection, joe, "org create", org_id=1)
            done = threads.submit(revoke)
            wait_until(lambda: connection.scalar(waits), limit_s=10)
            assert not revoked.is_set()
        done.result(10)


def test_two_revocations_at_once_leave_one_with_role_money(database: Database) -> None:
    actors = [add(database.engine, name) for name in ("maria", "joe")]
    start = threading.Barrier(2)

    def revoke(actor: Actor) -> bool:
        start.wait(10)
        try:
            with transaction(database.engine) as connection:
                revoke_operator(connection, actor, actor.name)
        except OperatorError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(revoke, actors)) == [False, True]


def test_two_first_operators_at_once_of_one_name_are_one(database: Database) -> None:
    start = threading.Barrier(2)

    def first(_: int) -> bool:
        start.wait(10)
        try:
            add(database.engine, "maria")
        except OperatorError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(first, range(2))) == [False, True]


def test_only_the_hash_of_a_token_is_kept(database: Database) -> None:
    with transaction(database.engine) as connection:
        made = add_operator(connection, LOGIN, "maria", OperatorRole.MONEY)
        kept = str(connection.execute(text("TABLE operators")).all()) + str(
            connection.execute(text("TABLE operator_log")).all()
        )
        found = find_operator(connection, made.token)
        assert find_operator(connection, made.token[:-1] + "x") is None
    assert made.token[:-4] not in kept
    assert found is not None
    assert found.name == "maria"
