"""History can't be rewritten: the application's role lacks the right, everybody else meets the trigger."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import errors
from sqlalchemy import Engine, text

from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.ledger.post_calls import post_calls, price_call
from db.ledger.price_book import load_price_book
from db.ledger.prices import set_price
from db.ledger.rejections import RejectedEntry, list_rejected, mark_replayed
from db.postgres.engine import transaction
from metering.rules.events import CallEvent
from metering.rules.pricing import Price
from metering.rules.rejections import Reason, Rejection
from tests.conftest import Database
from tests.db import execute_as

NOW = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)
BOLT = Price("bolt", None, 80_000, 60, 60, 0, 0)


@pytest.fixture
def written(database: Database) -> Database:
    """A database with rows in every table, all of them written as metering_app, with all the rights that it needs."""
    call = CallEvent(101, 1, "bolt", "outbound", 61_000_000, NOW, 201, "+15551234567", '{"a":1}')
    rejected = RejectedEntry("1-2", b"{", Rejection(Reason.MALFORMED_JSON, "not JSON"))
    with transaction(database.engine) as connection:
        assert create_org(connection, "first", NOW) == 1
        set_price(connection, BOLT, lambda: NOW)
        set_price(connection, Price("bolt", NOW + timedelta(days=1), 90_000, 60, 60, 0, 0), lambda: NOW)
        adjust(connection, 1, amount_cents=10_000, reason="paid in", key="first")
        book = load_price_book(connection)
        priced = price_call("1-1", b"{}", call, BOLT)
        post_calls(connection, [priced], [rejected], price_book_version=book.version)
        mark_replayed(connection, {list_rejected(connection, limit=1)[0][0].id: "1-3"}, NOW)
    return database


TABLES = ("accounts", "tiers", "prices", "transactions", "rejected_events")


def rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All that there is, table by table."""
    with engine.connect() as connection:
        return {
            table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))]  # noqa: S608
            for table in TABLES
        }


CHANGES_OF_HISTORY = [
    "UPDATE transactions SET amount_cents = 0",
    "UPDATE transactions SET description = 'x' WHERE false",
    "DELETE FROM transactions",
    "DELETE FROM transactions WHERE false",
    "TRUNCATE transactions",
    "INSERT INTO transactions OVERRIDING SYSTEM VALUE TABLE transactions ON CONFLICT (org_id, id) DO UPDATE SET tier = 'x'",
    "MERGE INTO transactions USING accounts ON accounts.org_id = transactions.org_id WHEN MATCHED THEN DELETE",
    "UPDATE prices SET rate_microusd_per_minute = 1",
    "DELETE FROM prices",
    "TRUNCATE prices",
    "TRUNCATE tiers CASCADE",
    "DELETE FROM accounts",
    "TRUNCATE accounts",
    "DELETE FROM rejected_events",
    "TRUNCATE rejected_events",
]
BEYOND_THE_RIGHTS_OF_THE_APPLICATION = [
    *CHANGES_OF_HISTORY,
    "UPDATE accounts SET org_id = 2",
    "UPDATE accounts SET created_at = now()",
    "UPDATE rejected_events SET raw = 'x'",
    "UPDATE rejected_events SET reason = 'x'",
    "UPDATE rejected_events SET received_at = now()",
    "UPDATE tiers SET created_at = now()",
    "DELETE FROM tiers",
    "UPDATE alembic_version SET version_num = 'x'",
    "ALTER TABLE transactions DISABLE TRIGGER USER",
    "DROP TRIGGER transactions_append_only ON transactions",
    "DROP INDEX transactions_call_key",
    "DROP TABLE rejected_events",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "SET session_replication_role = replica",
    "SET ROLE metering_owner",
    "CREATE TABLE of_my_own ()",
]


def test_the_application_has_no_right_to_rewrite(written: Database) -> None:
    before = rows(written.engine)

    for statement in BEYOND_THE_RIGHTS_OF_THE_APPLICATION:
        with pytest.raises(errors.InsufficientPrivilege):
            execute_as(written.url, statement)

    assert rows(written.engine) == before


@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_whoever_has_the_right_meets_the_trigger(written: Database, role: str) -> None:
    url = {"owner": written.owner_url, "superuser": written.admin_url}[role]
    before = rows(written.engine)
    assert all(before.values())

    for statement in CHANGES_OF_HISTORY:
        with pytest.raises(errors.IntegrityConstraintViolation, match=r"append-only: .* is refused"):
            execute_as(url, statement)

    assert rows(written.engine) == before


def test_a_tier_with_prices_stays(written: Database) -> None:
    for statement in ("DELETE FROM tiers", "UPDATE tiers SET name = 'x'"):
        with pytest.raises(errors.ForeignKeyViolation):
            execute_as(written.owner_url, statement)


def test_a_row_can_not_choose_its_place(written: Database) -> None:
    with pytest.raises(errors.GeneratedAlways):
        execute_as(
            written.url,
            "INSERT INTO transactions (id, org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
            " VALUES (0, 1, 'adjustment', 1, 1, now(), 'x', 'x')",
        )
