"""What migration 0008 makes of an installation that is there: whose customers are, and payments that were credited twice."""

from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, text

from db.audit.full import run_audit
from db.payments.stripe_customers import CustomerTakenError, claim_customer, find_org_of_customer
from db.postgres.engine import transaction
from db.postgres.schema import migrate
from tests.conftest import Database
from tests.db import execute_as

MIGRATIONS = Path(__file__).parents[3] / "db" / "migrations"

# Org 1 paid with cus_1, a card of which was saved long before. Somebody edited the metadata of pi_1 to say org 2, which then took
# over the customer and got the credit as well. Org 3 has a customer and has not paid yet.
BEFORE = """
    INSERT INTO accounts (org_id, name, balance_cents, version, transaction_count, last_posted_at, created_at,
        stripe_customer_id, default_payment_method_id)
    VALUES (1, 'one', 2000, 1, 1, '2026-04-20', '2026-04-01', 'cus_1', 'pm_1'),
        (2, 'two', 1500, 2, 2, '2026-04-21', '2026-03-01', 'cus_1', NULL),
        (3, 'three', 0, 0, 0, NULL, '2026-04-01', 'cus_3', NULL),
        (4, 'four', 0, 0, 0, NULL, '2026-04-01', NULL, NULL);
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key, metadata)
    VALUES (1, 'credit', 2000, 2000, '2026-04-20', 'Top-up', 'pi_1', '{"payment_intent_id": "pi_1"}'),
        (2, 'credit', 2000, 2000, '2026-04-21', 'Top-up', 'pi_1', '{"payment_intent_id": "pi_1"}'),
        (2, 'refund', -500, 1500, '2026-04-21', 'Refund', 're_1', '{"payment_intent_id": "pi_1"}');
    INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, status,
        payment_intent_id, look_at, finished_at, recovered)
    SELECT org_id, '00000000-0000-4000-8000-000000000001', 'top_up', 2000, 'cus_1', 'pm_1', '2026-04-20', 'succeeded', 'pi_1',
        '2026-04-20', '2026-04-20', org_id = 2 FROM generate_series(1, 2) AS org_id;
"""


@pytest.fixture
def updated(empty_database: Database) -> Database:
    """An installation of the version before, brought to this one."""
    owner = create_engine(empty_database.owner_url, poolclass=NullPool)
    migrate_to(owner, "0007")
    execute_as(empty_database.owner_url, BEFORE)
    assert migrate(owner)[0] == "0007"
    return empty_database


def migrate_to(owner: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with owner.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()


def rows(database: Database, query: str) -> list[tuple[object, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_customers_are_those_orgs_that_paid_with_them_first(updated: Database) -> None:
    assert rows(updated, "SELECT customer_id, org_id FROM stripe_customers ORDER BY 1") == [
        ("cus_1", 1),
        ("cus_3", 3),
    ]
    assert rows(
        updated, "SELECT org_id, stripe_customer_id, default_payment_method_id FROM accounts ORDER BY 1"
    ) == [
        (1, "cus_1", "pm_1"),
        (2, None, None),
        (3, "cus_3", None),
        (4, None, None),
    ]


def test_what_was_credited_twice_stays_is_named_and_can_be_taken_back(updated: Database) -> None:
    (found,) = [
        each for each in run_audit(updated.engine).violations if each.invariant == "payment_in_customers_org"
    ]
    assert found.org_id == 2
    assert "metering adjust 2 --cents -1500 --reason ... --key pi_1" in found.detail
    execute_as(
        updated.owner_url,
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " VALUES (2, 'adjustment', -1500, 0, '2026-04-22', 'taken back', 'pi_1')",
        "UPDATE accounts SET balance_cents = 0, transaction_count = 3, version = 3, last_posted_at = '2026-04-22'"
        " WHERE org_id = 2",
    )
    assert run_audit(updated.engine).passed


@pytest.mark.parametrize("payment", ["pi_1", "pi_2"])
def test_from_now_on_a_payment_is_credited_once_over_all_orgs(updated: Database, payment: str) -> None:
    credit = (
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " VALUES ({}, 'credit', 2000, 2000, now(), 'Top-up', '{}')"
    )
    if payment == "pi_2":
        execute_as(updated.owner_url, credit.format(3, payment))
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute_as(updated.owner_url, credit.format(4, payment))


def test_a_claim_is_for_ever(updated: Database) -> None:
    with transaction(updated.engine) as connection:
        claim_customer(connection, "cus_4", 4)
        claim_customer(connection, "cus_4", 4)
        assert find_org_of_customer(connection, "cus_4") == 4
        assert find_org_of_customer(connection, "cus_5") is None
        with pytest.raises(CustomerTakenError, match="cus_4 is org 4's"):
            claim_customer(connection, "cus_4", 3)
