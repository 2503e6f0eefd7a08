"""What was sent to Stripe and heard from it stands: no role of the product can change or drop it."""

import pytest
from psycopg import errors

from tests.conftest import Database
from tests.db import execute_as
from tests.payments.world import World

SENT = (
    *("org_id", "id", "kind", "amount_cents", "customer_id", "payment_method_id", "return_url"),
    *("created_at", "recovered"),
)
OF_THE_RULE = ("monthly_limit_cents", "month_committed_cents")
HEARD = (
    "UPDATE stripe_events SET outcome = 'x'",
    "UPDATE stripe_events SET id = 'x'",
    "UPDATE idempotency_keys SET request_sha256 = ''",
    "UPDATE idempotency_keys SET key = 'x'",
    "UPDATE idempotency_keys SET org_id = 2",
    "UPDATE transactions SET source_key = 'x'",
    "UPDATE transactions SET amount_cents = 1",
)
KEPT = ("payment_attempts", "stripe_events", "idempotency_keys", "transactions")


@pytest.fixture
def world(own_world: World) -> World:
    return own_world


@pytest.fixture
def paid(world: World) -> World:
    """A world in which each of these tables has a row."""
    world.save_card()
    world.top_up(key="a")
    world.deliver(*world.events("payment_intent.succeeded"))
    for table in KEPT:
        assert world.rows(f"SELECT * FROM {table}"), table  # noqa: S608
    return world


def test_the_application_cannot_change_what_an_attempt_sends_or_what_was_heard(
    paid: World, database: Database
) -> None:
    changes = [f"UPDATE payment_attempts SET {column} = {column}" for column in (*SENT, *OF_THE_RULE)]  # noqa: S608
    for statement in (*changes, *HEARD):
        with pytest.raises(errors.InsufficientPrivilege):
            execute_as(database.url, statement)


def test_no_role_of_the_product_has_the_right_to(world: World) -> None:
    for role in ("metering_app", "metering_meter", "metering_api", "metering_jobs"):
        require_no_right(world, role)


def require_no_right(world: World, role: str) -> None:
    may = world.rows(
        "SELECT has_column_privilege(:role, 'payment_attempts', name, 'UPDATE') FROM unnest(CAST(:names AS text[])) AS name",
        role=role,
        names=[*SENT, *OF_THE_RULE],
    )
    drops = world.rows(
        "SELECT has_table_privilege(:role, name, 'DELETE, TRUNCATE') FROM unnest(CAST(:names AS text[])) AS name",
        role=role,
        names=[*KEPT],
    )
    assert {*may, *drops} == {(False,)}


def test_the_application_cannot_drop_attempts_events_or_keys(paid: World, database: Database) -> None:
    for table in KEPT:
        for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}"):  # noqa: S608
            with pytest.raises(errors.InsufficientPrivilege):
                execute_as(database.url, statement)


def test_nor_can_the_owner_by_mistake(paid: World, database: Database) -> None:
    for table in KEPT:
        for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}"):  # noqa: S608
            with pytest.raises(errors.IntegrityConstraintViolation):
                execute_as(database.owner_url, statement)
    with pytest.raises(errors.IntegrityConstraintViolation):
        execute_as(database.owner_url, "UPDATE stripe_events SET outcome = 'x'")
    paid.assert_sound()


def test_two_open_reloads_of_one_org_cannot_be_written(paid: World, database: Database) -> None:
    """Whatever the code does."""
    row = """
        INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, look_at)
        VALUES (1, gen_random_uuid(), 'auto_reload', 500, 'c', 'p', now(), now())
    """
    execute_as(database.url, row)
    with pytest.raises(errors.UniqueViolation):
        execute_as(database.url, row)
    for broken in ("-1", "0"):
        with pytest.raises(errors.CheckViolation):
            execute_as(database.url, row.replace("'auto_reload', 500", f"'top_up', {broken}"))


def test_a_credit_of_the_same_payment_cannot_be_written_twice(paid: World, database: Database) -> None:
    """The key that lasts for ever is the database's own."""
    with pytest.raises(errors.UniqueViolation):
        execute_as(
            database.url,
            "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
            " SELECT org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key"
            " FROM transactions WHERE kind = 'credit'",
        )
