"""The audit finds each kind of damage, and nothing else."""

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from db.accounts.orgs import create_org
from db.audit.full import AuditReport, run_audit
from db.audit.invariants import INVARIANTS
from db.ledger.adjustments import adjust
from db.ledger.post_calls import post_calls, price_call
from db.ledger.prices import load_price_book, set_price
from db.postgres.engine import make_engine, transaction
from metering.rules.events import MAX_DURATION_US, CallEvent
from metering.rules.money import MAX_USD, MICROUSD_PER_USD
from metering.rules.pricing import MAX_INCREMENT_S, MAX_MINIMUM_S, Price
from tests.conftest import Database
from tests.db import execute_as

NOW = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)
SECOND_US = 1_000_000

MAX_MICROUSD = MAX_USD * MICROUSD_PER_USD
BOLT = Price("bolt", None, 80_000, 60, 60, 0, 0)
FINE = Price("fine", None, 333_333, 30, 6, 45, 10_000)


def a_call(org_id: int, call_id: int, tier: str, duration_us: int, ended_at: datetime = NOW) -> CallEvent:
    return CallEvent(call_id, org_id, tier, "outbound", duration_us, ended_at, None, None, "{}")


def post(engine: Engine, calls: Sequence[CallEvent], at: datetime = NOW) -> None:
    """Bill calls as a meter does, with `at` as the time of posting."""
    with transaction(engine) as connection:
        book = load_price_book(connection)
        priced = []
        for call in calls:
            price = book.in_force(call.tier, call.ended_at - timedelta(microseconds=call.duration_us))
            assert price is not None
            priced.append(price_call(f"1-{call.call_id}", b"", call, price))
        posted = post_calls(connection, priced, [], price_book_version=book.version, clock=lambda: at)
    assert len(posted.debits) == len(calls)


def make_orgs(engine: Engine, *org_ids: int) -> None:
    with transaction(engine) as connection:
        for org_id in org_ids:
            create_org(connection, f"org {org_id}", NOW, org_id=org_id)


def make_prices(engine: Engine, *prices: Price, now: datetime = NOW) -> None:
    with transaction(engine) as connection:
        for price in prices:
            set_price(connection, price, lambda: now)


def pay_in(engine: Engine, org_id: int, amount_cents: int) -> None:
    with transaction(engine) as connection:
        adjust(
            connection, org_id, amount_cents=amount_cents, reason="paid in", key="first", clock=lambda: NOW
        )


# Org 5's: a top-up, partly refunded, and two reloads of one month, which fill its limit; a third could not be made.
PAYMENTS = """
    INSERT INTO accounts (org_id, name, balance_cents, version, transaction_count, last_posted_at, created_at)
    VALUES (5, 'org 5', 6500, 4, 4, '2026-04-20 18:25:06.201+00', '2026-04-20 18:25:06.201+00');
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key, metadata)
    VALUES (5, 'credit', 2000, 2000, '2026-04-20 18:25:06.201+00', 'Top-up', 'pi_1', '{"payment_intent_id": "pi_1"}'),
        (5, 'credit', 2500, 4500, '2026-04-20 18:25:06.201+00', 'Auto-reload', 'pi_2', '{"payment_intent_id": "pi_2"}'),
        (5, 'refund', -500, 4000, '2026-04-20 18:25:06.201+00', 'Refund', 're_1', '{"payment_intent_id": "pi_1"}'),
        (5, 'credit', 2500, 6500, '2026-04-20 18:25:06.201+00', 'Auto-reload', 'pi_3', '{"payment_intent_id": "pi_3"}');
    INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, first_sent_at,
        monthly_limit_cents, month_committed_cents, status, payment_intent_id, look_at, finished_at)
    VALUES
        (5, '00000000-0000-4000-8000-000000000001', 'top_up', 2000, 'cus_1', 'pm_1', '2026-04-02', '2026-04-02', NULL, 0,
            'succeeded', 'pi_1', '2026-04-02', '2026-04-02'),
        (5, '00000000-0000-4000-8000-000000000002', 'auto_reload', 2500, 'cus_1', 'pm_1', '2026-04-03', '2026-04-03', 5000, 0,
            'succeeded', 'pi_2', '2026-04-03', '2026-04-03'),
        (5, '00000000-0000-4000-8000-000000000003', 'auto_reload', 2500, 'cus_1', 'pm_1', '2026-04-04', '2026-04-04', 5000, 0,
            'failed', NULL, '2026-04-04', '2026-04-05'),
        (5, '00000000-0000-4000-8000-000000000004', 'auto_reload', 2500, 'cus_1', 'pm_1', '2026-04-05', '2026-04-05', 5000, 2500,
            'succeeded', 'pi_3', '2026-04-05', '2026-04-06'),
        (5, '00000000-0000-4000-8000-000000000005', 'auto_reload', 2500, 'cus_1', 'pm_1', '2099-04-05', '2099-04-05', 5000, 0,
            'open', NULL, '2099-04-05', NULL);
    INSERT INTO stripe_customers (customer_id, org_id) VALUES ('cus_1', 5);
"""


@pytest.fixture
def ledger(database: Database) -> Database:
    """Org 1, which the tests damage, and org 2 with six transactions each; org 3 with none, org 4 with one."""
    engine = database.engine
    make_orgs(engine, 1, 2, 3, 4)
    make_prices(engine, BOLT, FINE)
    for org_id in (1, 2):
        pay_in(engine, org_id, 10_000)
        post(engine, [a_call(org_id, 101, "bolt", 61 * SECOND_US), a_call(org_id, 102, "fine", 75_000_001)])
        later = NOW + timedelta(seconds=1)
        post(engine, [a_call(org_id, 103, "bolt", 1), a_call(org_id, 104, "fine", 2_000)], later)
        post(engine, [a_call(org_id, 105, "bolt", 180 * SECOND_US)], later + timedelta(seconds=1))
    pay_in(engine, 4, 500)
    execute_as(database.admin_url, PAYMENTS)
    return database


def broken(report: AuditReport) -> set[str]:
    return {violation.invariant for violation in report.violations}


def test_an_undamaged_ledger_passes_and_is_counted(ledger: Database) -> None:
    report = run_audit(ledger.engine, clock=lambda: NOW)

    assert report.violations == []
    assert report.passed
    assert not report.truncated
    assert report.taken_at == NOW
    # 61 s at 60/60 are 2 minutes; 75.000001 s at 30/6 are 78 s; 1 µs is a minute; 2 ms are, with the minimum, 48 s.
    charged_cents = 16 + 44 + 8 + 28 + 24
    assert report.counts == {
        "orgs": 5,
        "transactions": 17,
        "debits": 10,
        "rejected_events": 0,
        "balances_cents": 2 * (10_000 - charged_cents) + 500 + 6_500,
    }


def test_a_database_without_any_orgs_passes(database: Database) -> None:
    report = run_audit(database.engine)

    assert report.passed
    assert set(report.counts.values()) == {0}


@dataclass(frozen=True)
class Damage:
    """What somebody does to the ledger by hand, and exactly the invariants that break by it."""

    name: str
    script: str
    breaks: set[str]
    org_id: int | None = 1
    rebalanced: bool = False


# What a forger does who knows of balances: every balance made to fit the amounts again.
REBALANCE = """
    UPDATE transactions SET balance_after_cents = step.balance_cents
    FROM (SELECT org_id, id, sum(amount_cents) OVER (PARTITION BY org_id ORDER BY id) AS balance_cents FROM transactions) AS step
    WHERE (transactions.org_id, transactions.id) = (step.org_id, step.id);
    UPDATE accounts SET
        balance_cents = coalesce((SELECT sum(amount_cents) FROM transactions WHERE org_id = accounts.org_id), 0),
        transaction_count = (SELECT count(*) FROM transactions WHERE org_id = accounts.org_id),
        last_posted_at = (SELECT max(created_at) FROM transactions WHERE org_id = accounts.org_id);
"""
COPY_OF_CALL_105 = """
    INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, call_id, tier,
        duration_us, ended_at, billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
        connect_fee_microusd)
    SELECT {org_id}, 'debit', amount_cents, balance_after_cents, created_at, description, {call_id}, tier,
        duration_us, ended_at, billable_seconds, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
        connect_fee_microusd
    FROM transactions WHERE org_id = 1 AND call_id = 105
"""
# What keeps damage out, taken away; and what brings back the rows that were there then.
UNPROTECT = """
    ALTER TABLE transactions DISABLE TRIGGER USER;
    ALTER TABLE accounts DISABLE TRIGGER USER;
    ALTER TABLE tier_prices DISABLE TRIGGER USER;
    ALTER TABLE payment_attempts DISABLE TRIGGER USER;
    ALTER TABLE stripe_customers DISABLE TRIGGER USER;
    DROP INDEX payment_attempts_open_reload_key;
    ALTER TABLE transactions DROP CONSTRAINT transactions_kind_check;
    DROP INDEX transactions_call_key, transactions_source_key, transactions_credit_key;
    CREATE TABLE undamaged_transactions AS TABLE transactions;
    CREATE TABLE undamaged_accounts AS TABLE accounts;
    CREATE TABLE undamaged_prices AS TABLE tier_prices;
    CREATE TABLE undamaged_attempts AS TABLE payment_attempts;
    CREATE TABLE undamaged_customers AS TABLE stripe_customers;
"""
RESTORE = """
    DELETE FROM transactions;
    INSERT INTO transactions OVERRIDING SYSTEM VALUE TABLE undamaged_transactions;
    DELETE FROM accounts;
    INSERT INTO accounts TABLE undamaged_accounts;
    DELETE FROM tier_prices;
    INSERT INTO tier_prices OVERRIDING SYSTEM VALUE TABLE undamaged_prices;
    DELETE FROM payment_attempts;
    INSERT INTO payment_attempts TABLE undamaged_attempts;
    DELETE FROM stripe_customers;
    INSERT INTO stripe_customers TABLE undamaged_customers;
    DELETE FROM set_aside_events;
"""

DAMAGES = [
    Damage(
        "a debit's amount",
        "UPDATE transactions SET amount_cents = -15 WHERE org_id = 1 AND call_id = 101",
        {"balance_is_sum", "chain_unbroken", "debit_priced_again"},
    ),
    Damage(
        "a debit's amount by one cent",
        "UPDATE transactions SET amount_cents = amount_cents - 1 WHERE org_id = 1 AND call_id = 102",
        {"debit_priced_again"},
        rebalanced=True,
    ),
    Damage(
        "an adjustment's amount",
        "UPDATE transactions SET amount_cents = 20000 WHERE org_id = 1 AND kind = 'adjustment'",
        {"balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "two amounts that cancel out",
        "UPDATE transactions SET amount_cents = -24 WHERE org_id = 1 AND call_id = 101;"
        "UPDATE transactions SET amount_cents = -16 WHERE org_id = 1 AND call_id = 105",
        {"chain_unbroken", "debit_priced_again"},
    ),
    Damage(
        "a row missing in the middle",
        "DELETE FROM transactions WHERE org_id = 1 AND call_id = 103",
        {"transactions_counted", "balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "the first row missing",
        "DELETE FROM transactions WHERE org_id = 1 AND kind = 'adjustment'",
        {"transactions_counted", "balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "the last row missing",
        "DELETE FROM transactions WHERE org_id = 1 AND call_id = 105",
        {"transactions_counted", "balance_is_sum", "balance_is_last", "last_posted_at_is_newest"},
    ),
    Damage(
        "the only row missing",
        "DELETE FROM transactions WHERE org_id = 4",
        {"transactions_counted", "balance_is_sum", "last_posted_at_is_newest"},
        org_id=4,
    ),
    Damage(
        "an org's rows all missing, the balance set to 0",
        "DELETE FROM transactions WHERE org_id = 1; UPDATE accounts SET balance_cents = 0 WHERE org_id = 1",
        {"transactions_counted", "last_posted_at_is_newest"},
    ),
    Damage(
        "a transaction too many in the account's count",
        "UPDATE accounts SET transaction_count = transaction_count + 1 WHERE org_id = 1",
        {"transactions_counted"},
    ),
    Damage(
        "a balance",
        "UPDATE accounts SET balance_cents = balance_cents + 1 WHERE org_id = 1",
        {"balance_is_sum", "balance_is_last"},
    ),
    Damage(
        "a balance without transactions",
        "UPDATE accounts SET balance_cents = 1 WHERE org_id = 3",
        {"balance_is_sum"},
        org_id=3,
    ),
    Damage(
        "the last balance_after and the balance",
        "UPDATE transactions SET balance_after_cents = 0 WHERE org_id = 1 AND call_id = 105;"
        "UPDATE accounts SET balance_cents = 0 WHERE org_id = 1",
        {"balance_is_sum", "chain_unbroken"},
    ),
    Damage(
        "a balance_after in the middle",
        "UPDATE transactions SET balance_after_cents = balance_after_cents + 1 WHERE org_id = 1 AND call_id = 103",
        {"chain_unbroken"},
    ),
    Damage(
        "a second debit of a call",
        COPY_OF_CALL_105.format(org_id=1, call_id=105),
        {"call_billed_once"},
        rebalanced=True,
    ),
    Damage(
        "a second writing of an adjustment",
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " SELECT org_id, kind, amount_cents, 0, created_at + interval '1 h', description, source_key"
        " FROM transactions WHERE org_id = 1 AND kind = 'adjustment'",
        {"source_once"},
        rebalanced=True,
    ),
    Damage(
        "a debit of an org that isn't there",
        COPY_OF_CALL_105.format(org_id=404, call_id=1),
        {"account_exists"},
        org_id=404,
        rebalanced=True,
    ),
    Damage(
        "an account missing",
        "DELETE FROM accounts WHERE org_id = 1",
        {"account_exists"},
    ),
    Damage(
        "a duration",
        "UPDATE transactions SET duration_us = 120000001 WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again"},
    ),
    Damage(
        "a duration, made 0 s",
        "UPDATE transactions SET duration_us = 0 WHERE org_id = 1 AND call_id = 103",
        {"debit_priced_again"},
    ),
    Damage(
        "a debit for a call of 0 s",
        "UPDATE transactions SET duration_us = 0, billable_seconds = 0, amount_cents = 0,"
        " description = 'Call billing: 0 minutes × $0.08' WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again"},
        rebalanced=True,
    ),
    Damage(
        "billable seconds",
        "UPDATE transactions SET billable_seconds = 180 WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again", "description_matches"},
    ),
    Damage(
        "a rate",
        "UPDATE transactions SET rate_microusd_per_minute = 90000 WHERE org_id = 1 AND call_id = 101",
        {"debit_priced_again", "description_matches", "price_in_force"},
    ),
    Damage(
        "a rate that makes the same cents",
        "UPDATE transactions SET rate_microusd_per_minute = 80001, description = 'Call billing: 2 minutes × $0.080001'"
        " WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
    ),
    Damage(
        "a rate with all that follows from it",
        "UPDATE transactions SET rate_microusd_per_minute = 160000, amount_cents = -32,"
        " description = 'Call billing: 2 minutes × $0.16' WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
        rebalanced=True,
    ),
    Damage(
        "a rate with all that follows from it, and the end put ahead of the clock",
        "UPDATE transactions SET rate_microusd_per_minute = 160000, amount_cents = -32,"
        " description = 'Call billing: 2 minutes × $0.16', ended_at = ended_at + interval '1 year'"
        " WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
        rebalanced=True,
    ),
    Damage(
        "a minimum",
        "UPDATE transactions SET minimum_s = 49 WHERE org_id = 1 AND call_id = 104",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a connect fee",
        "UPDATE transactions SET connect_fee_microusd = 0 WHERE org_id = 1 AND call_id = 104",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a first increment",
        "UPDATE transactions SET increment_first_s = 50 WHERE org_id = 1 AND call_id = 104",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a next increment",
        "UPDATE transactions SET increment_next_s = 7 WHERE org_id = 1 AND call_id = 102",
        {"debit_priced_again", "price_in_force"},
    ),
    Damage(
        "a tier's price, after calls were billed with it",
        "DELETE FROM transactions WHERE org_id = 2 AND tier = 'bolt';"
        "UPDATE tier_prices SET connect_fee_microusd = 1 WHERE tier = 'bolt'",
        {"price_in_force"},
        rebalanced=True,
    ),
    Damage(
        "a tier",
        "UPDATE transactions SET tier = 'gone' WHERE org_id = 1 AND call_id = 101",
        {"price_in_force"},
    ),
    Damage(
        "a description",
        "UPDATE transactions SET description = 'Call billing: 2 minutes × $0.080' WHERE org_id = 1 AND call_id = 101",
        {"description_matches"},
    ),
    Damage(
        "swapped times",
        "UPDATE transactions SET created_at = other.created_at FROM transactions AS other"
        " WHERE transactions.org_id = 1 AND other.org_id = 1"
        " AND (transactions.call_id, other.call_id) IN ((102, 103), (103, 102))",
        {"order_of_time"},
    ),
    Damage(
        "the time of the last posting",
        "UPDATE accounts SET last_posted_at = last_posted_at + interval '1 s' WHERE org_id = 1",
        {"last_posted_at_is_newest"},
    ),
    Damage(
        "a time finer than milliseconds",
        "UPDATE transactions SET created_at = created_at + interval '1 microsecond' WHERE org_id = 1 AND call_id = 104",
        {"whole_milliseconds"},
    ),
    Damage(
        "a debit that gives money",
        "UPDATE transactions SET amount_cents = 16 WHERE org_id = 1 AND call_id = 101",
        {"sign_of_kind", "debit_priced_again"},
        rebalanced=True,
    ),
    Damage(
        "an adjustment made a refund that gives money",
        "UPDATE transactions SET kind = 'refund' WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind", "refund_has_credit"},
    ),
    Damage(
        "a debit made a credit that takes money",
        "UPDATE transactions SET kind = 'credit', call_id = NULL, source_key = 'pi_1'"
        " WHERE org_id = 1 AND call_id = 101",
        {"sign_of_kind", "credit_has_attempt", "payment_in_customers_org"},
        rebalanced=True,
    ),
    Damage(
        "an adjustment of 0 cents",
        "UPDATE transactions SET amount_cents = 0 WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind"},
        rebalanced=True,
    ),
    Damage(
        "a kind that there isn't",
        "UPDATE transactions SET kind = 'gift' WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind"},
    ),
    Damage(
        "a debit without its call",
        "UPDATE transactions SET call_id = NULL WHERE org_id = 1 AND call_id = 101",
        {"sign_of_kind"},
    ),
    Damage(
        "an adjustment without its key",
        "UPDATE transactions SET source_key = NULL WHERE org_id = 1 AND kind = 'adjustment'",
        {"sign_of_kind"},
    ),
    Damage(
        "a credit that is missing",
        "DELETE FROM transactions WHERE org_id = 5 AND source_key = 'pi_3'",
        {"attempt_credited"},
        org_id=5,
        rebalanced=True,
    ),
    Damage(
        "a credit of another amount than was charged",
        "UPDATE transactions SET amount_cents = 2400 WHERE org_id = 5 AND source_key = 'pi_3'",
        {"attempt_credited"},
        org_id=5,
        rebalanced=True,
    ),
    Damage(
        "a credit for an attempt that failed",
        "UPDATE payment_attempts SET status = 'failed' WHERE org_id = 5 AND payment_intent_id = 'pi_3'",
        {"attempt_credited", "credit_has_attempt"},
        org_id=5,
    ),
    Damage(
        "a credit that nobody was charged for",
        "INSERT INTO stripe_customers (customer_id, org_id) VALUES ('cus_4', 4); "
        "UPDATE payment_attempts SET org_id = 4, customer_id = 'cus_4' WHERE payment_intent_id = 'pi_1'; "
        "UPDATE payment_attempts SET status = 'failed' WHERE payment_intent_id = 'pi_1'",
        {"credit_has_attempt", "payment_in_customers_org"},
        org_id=5,
    ),
    Damage(
        "two attempts for one charge",
        "UPDATE payment_attempts SET payment_intent_id = 'pi_2' WHERE org_id = 5 AND status = 'failed'",
        {"attempt_credited"},
        org_id=5,
    ),
    Damage(
        "a payment credited to another org than its customer's",
        "INSERT INTO stripe_customers (customer_id, org_id) VALUES ('cus_2', 4); "
        "UPDATE payment_attempts SET customer_id = 'cus_2' WHERE payment_intent_id = 'pi_3'",
        {"payment_in_customers_org", "customer_in_org"},
        org_id=5,
    ),
    Damage(
        "an account with another org's customer",
        "UPDATE accounts SET stripe_customer_id = 'cus_1' WHERE org_id = 1",
        {"customer_in_org"},
    ),
    Damage(
        "an attempt with a customer that is nobody's",
        "UPDATE payment_attempts SET customer_id = 'cus_9' WHERE org_id = 5 AND status = 'failed'",
        {"customer_in_org"},
        org_id=5,
    ),
    Damage(
        "a payment credited to two orgs",
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " VALUES (4, 'credit', 2500, 2500, '2026-04-21', 'Top-up', 'pi_3'); "
        "INSERT INTO payment_attempts (org_id, id, kind, amount_cents, customer_id, payment_method_id, created_at, status,"
        " payment_intent_id, look_at, finished_at, recovered) SELECT 4, id, kind, amount_cents, customer_id,"
        " payment_method_id, created_at, status, payment_intent_id, look_at, finished_at, true"
        " FROM payment_attempts WHERE payment_intent_id = 'pi_3'",
        {"payment_in_customers_org"},
        org_id=4,
        rebalanced=True,
    ),
    Damage(
        "a refund of what was never paid",
        "UPDATE transactions SET metadata = NULL WHERE org_id = 5 AND kind = 'refund'",
        {"refund_has_credit"},
        org_id=5,
    ),
    Damage(
        "two reloads open at once",
        "UPDATE payment_attempts SET status = 'open', finished_at = NULL, look_at = '2099-01-01'"
        " WHERE org_id = 5 AND status = 'failed'",
        {"one_open_reload", "month_within_limit"},
        org_id=5,
    ),
    Damage(
        "a reload one cent above its limit",
        "UPDATE payment_attempts SET monthly_limit_cents = 4999 WHERE org_id = 5 AND payment_intent_id = 'pi_3'",
        {"month_within_limit"},
        org_id=5,
    ),
    Damage(
        "a reload beside one that had failed only later",
        "UPDATE payment_attempts SET finished_at = '2026-04-05 00:00:00.001' WHERE org_id = 5 AND status = 'failed'",
        {"month_within_limit"},
        org_id=5,
    ),
    Damage(
        "an attempt that nobody looks at",
        "UPDATE payment_attempts SET look_at = '2026-04-01' WHERE org_id = 5 AND status = 'open'",
        {"attempt_watched"},
        org_id=5,
    ),
    Damage(
        "an event of Stripe's that can't be handled",
        "INSERT INTO set_aside_events (id, type, created_at, livemode, data, set_aside_at, retry_at, error)"
        " VALUES ('evt_1', 'refund.created', '2026-04-01', false, '{}', '2026-04-01', '2026-04-01', 'KeyError')",
        {"stripe_event_handled"},
        org_id=None,
    ),
]


def test_a_reload_that_failed_in_the_millisecond_of_the_next_one_took_nothing_from_it(
    ledger: Database,
) -> None:
    """Whichever of the two has the lower id."""
    moved = (
        "UPDATE payment_attempts SET created_at = '2026-04-05', finished_at = '2026-04-05', month_committed_cents = 2500,"
        " id = '00000000-0000-4000-8000-00000000000?' WHERE org_id = 5 AND status = 'failed'"
    )
    for number in "06":
        execute_as(ledger.admin_url, moved.replace("?", number))
        assert run_audit(ledger.engine).passed


def test_each_damage_breaks_what_it_should_in_its_org_and_nothing_else(ledger: Database) -> None:
    execute_as(ledger.admin_url, UNPROTECT)
    found = {}
    for damage in DAMAGES:
        execute_as(ledger.admin_url, damage.script, *[REBALANCE] * damage.rebalanced)
        report = run_audit(ledger.engine)
        found[damage.name] = (broken(report), {violation.org_id for violation in report.violations})
        execute_as(ledger.admin_url, RESTORE)

    assert found == {damage.name: (damage.breaks, {damage.org_id}) for damage in DAMAGES}
    assert run_audit(ledger.engine).passed


def test_every_invariant_is_broken_by_some_damage() -> None:
    assert set().union(*(damage.breaks for damage in DAMAGES)) == set(INVARIANTS)


def test_details_name_the_transaction_and_the_numbers(ledger: Database) -> None:
    execute_as(
        ledger.admin_url,
        "ALTER TABLE transactions DISABLE TRIGGER USER",
        "UPDATE transactions SET amount_cents = -15 WHERE org_id = 1 AND call_id = 101",
    )

    details = {violation.invariant: violation.detail for violation in run_audit(ledger.engine).violations}

    assert details == {
        "balance_is_sum": "the balance is 9880 cents, its 6 transactions make 9881",
        "chain_unbroken": "transaction 2: the balance before it was 10000 cents, its amount is -15, the balance after it 9984",
        "debit_priced_again": "transaction 2, call 101: 120 s and -15 cents are stored, its duration and price make"
        " 120 s and -16 cents",
    }


COUNTED = [
    *("amount_cents", "balance_after_cents", "duration_us", "billable_seconds"),
    *(
        "rate_microusd_per_minute",
        "increment_first_s",
        "increment_next_s",
        "minimum_s",
        "connect_fee_microusd",
    ),
]
WILD_VALUES = [
    *((column, str(number)) for column in COUNTED for number in (-(2**63), -1, 2**63 - 1)),
    *((column, "0") for column in ("duration_us", "increment_first_s", "increment_next_s")),
    *((column, "NULL") for column in COUNTED[2:]),
    *(
        ("ended_at", value)
        for value in ("NULL", "'-infinity'", "'4713-01-01 BC'", "'294276-12-31'", "'infinity'")
    ),
    *(("created_at", value) for value in ("'-infinity'", "'4713-01-01 BC'", "'294276-12-31'", "'infinity'")),
]


def test_the_wildest_damage_is_named_too(ledger: Database) -> None:
    execute_as(ledger.admin_url, UNPROTECT)
    unnamed = []
    for column, value in WILD_VALUES:
        # On two rows, so that two values that are too large also come together in sums.
        damage = f"UPDATE transactions SET {column} = {value} WHERE org_id = 1 AND call_id IN (102, 104)"  # noqa: S608
        execute_as(ledger.admin_url, damage)
        report = run_audit(ledger.engine)
        if {violation.org_id for violation in report.violations} != {1}:
            unnamed.append((column, value, report.violations))
        execute_as(ledger.admin_url, RESTORE)
    assert unnamed == []


def random_price(number: int, source: random.Random) -> Price:
    """Some price within the limits, its values small, at a limit, or anything."""
    rate, fee = (
        source.choice([0, 5_000, 12_500, 333_333, MAX_MICROUSD, source.randint(0, MAX_MICROUSD)])
        for _ in "12"
    )
    first, following = (source.choice([1, 6, 60, MAX_INCREMENT_S, source.randint(1, 300)]) for _ in "12")
    minimum = source.choice([0, 30, MAX_MINIMUM_S, source.randint(0, 600)])
    return Price(f"tier{number}", None, rate, first, following, minimum, fee)


def test_every_debit_is_priced_again_like_the_rules_price_it(database: Database) -> None:
    source = random.Random(20260420)
    prices = [BOLT, FINE, *(random_price(number, source) for number in range(60))]
    # Halves of a cent exactly: 7.5 s of 0.04 a minute, and a fee of half a cent.
    prices += [Price("half", None, 40_000, 1, 1, 0, 0), Price("fee", None, 0, 1, 1, 0, 5_000)]
    durations_us = [
        1,
        999,
        SECOND_US,
        SECOND_US + 1,
        7_500_000,
        60 * SECOND_US,
        60 * SECOND_US + 1,
        MAX_DURATION_US,
    ]
    durations_us += [source.randint(1, 900 * SECOND_US) for _ in range(12)]
    make_orgs(database.engine, 1)
    make_prices(database.engine, *prices)
    pairs = [(price, duration_us) for price in prices for duration_us in durations_us]
    calls = [
        a_call(1, number, price.tier, duration_us) for number, (price, duration_us) in enumerate(pairs, 1)
    ]
    post(database.engine, calls)

    report = run_audit(database.engine)
    assert report.violations == []
    assert report.counts["debits"] == len(calls) == 64 * 20

    execute_as(database.admin_url, UNPROTECT)
    for script in (
        "UPDATE transactions SET amount_cents = amount_cents - 1",
        "UPDATE transactions SET amount_cents = amount_cents + 2",
        "UPDATE transactions SET amount_cents = amount_cents - 1, billable_seconds = billable_seconds + increment_next_s",
        "UPDATE transactions SET billable_seconds = billable_seconds - 2 * increment_next_s",
    ):
        execute_as(database.admin_url, RESTORE, script)
        report = run_audit(database.engine, limit_per_invariant=2_000)
        named = [violation for violation in report.violations if violation.invariant == "debit_priced_again"]
        assert len(named) == len(calls), script


def test_each_call_is_held_against_the_price_of_its_start(database: Database) -> None:
    engine = database.engine
    make_orgs(engine, 1)
    make_prices(engine, BOLT)
    change_at = NOW + timedelta(seconds=60)
    make_prices(engine, Price("bolt", change_at, 90_000, 60, 60, 0, 0))
    post(
        engine,
        [
            a_call(1, 1, "bolt", 2 * SECOND_US, change_at + timedelta(seconds=1)),
            a_call(1, 2, "bolt", SECOND_US, change_at + timedelta(seconds=1)),
            a_call(1, 3, "bolt", SECOND_US + 1, change_at + timedelta(seconds=1)),
        ],
        at=change_at + timedelta(minutes=1),
    )
    assert run_audit(engine).violations == []

    execute_as(
        database.admin_url,
        "ALTER TABLE transactions DISABLE TRIGGER USER",
        "UPDATE transactions SET ended_at = ended_at + interval '1 microsecond' WHERE call_id = 3",
    )
    assert [(violation.invariant, violation.detail) for violation in run_audit(engine).violations] == [
        (
            "price_in_force",
            "transaction 3, call 3: (80000,60,60,0,0) are stored, tier bolt had (90000,60,60,0,0) at 2026-04-20 18:26:06.201+00",
        )
    ]


def test_a_price_set_after_a_call_from_ahead_of_the_clock_is_no_damage(database: Database) -> None:
    engine = database.engine
    make_orgs(engine, 1)
    make_prices(engine, BOLT)
    post(engine, [a_call(1, 1, "bolt", SECOND_US, NOW + timedelta(minutes=5))])
    make_prices(engine, Price("bolt", NOW + timedelta(minutes=2), 90_000, 60, 60, 0, 0))

    assert run_audit(engine).violations == []


def test_the_first_violations_of_each_invariant_are_listed(ledger: Database) -> None:
    execute_as(
        ledger.admin_url,
        "ALTER TABLE transactions DISABLE TRIGGER USER",
        # Damaged backwards, so that the rows lie in another order than they are to be listed in.
        *[f"UPDATE transactions SET description = 'x' WHERE id = {number}" for number in range(12, 0, -1)],  # noqa: S608
        "UPDATE transactions SET description = 'paid in' WHERE kind = 'adjustment'",
        "UPDATE accounts SET balance_cents = 0 WHERE org_id < 3",
    )

    report = run_audit(ledger.engine, limit_per_invariant=6)
    assert report.truncated
    described = [violation for violation in report.violations if violation.invariant == "description_matches"]
    assert [violation.org_id for violation in described] == [1, 1, 1, 1, 1, 2]
    assert [violation.detail.split()[1] for violation in described] == ["2", "3", "4", "5", "6", "8"]
    assert len(report.violations) == 6 + 2 + 2

    all_of_them = run_audit(ledger.engine, limit_per_invariant=10)
    assert not all_of_them.truncated
    assert len(all_of_them.violations) == 10 + 2 + 2


def test_what_is_committed_while_the_audit_runs_is_not_seen(ledger: Database) -> None:
    # From its first look on, all that the audit looks at is damaged a little more after each statement.
    looks: list[str] = []

    def damage(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SET"):
            return
        looks.append(statement)
        execute_as(
            ledger.admin_url,
            "ALTER TABLE transactions DISABLE TRIGGER USER",
            "UPDATE accounts SET balance_cents = balance_cents + 1, last_posted_at = last_posted_at + interval '1 s'",
            "UPDATE transactions SET description = 'x', balance_after_cents = balance_after_cents + 5, duration_us = 0",
        )

    event.listen(ledger.engine, "after_cursor_execute", damage)
    report = run_audit(ledger.engine)
    event.remove(ledger.engine, "after_cursor_execute", damage)

    assert report.violations == []
    assert len(looks) > len(INVARIANTS)
    assert broken(run_audit(ledger.engine)) >= {"balance_is_sum", "description_matches", "debit_priced_again"}


def test_the_audit_can_only_read_and_leaves_the_connection_as_it_was(ledger: Database) -> None:
    engine = make_engine(ledger.url, application_name="tests", pool_size=1)
    levels = []

    def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM violation" in statement:
            with connection.connection.cursor() as cursor:
                cursor.execute(
                    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
                )
                levels.append(cursor.fetchone())

    event.listen(engine, "after_cursor_execute", note)
    run_audit(engine)
    assert set(levels) == {("repeatable read", "on")}
    with transaction(engine) as connection:
        assert connection.scalar(text("SELECT current_setting('transaction_isolation')")) == "read committed"
        create_org(connection, "one more", NOW)
    engine.dispose()


@pytest.fixture
def busy_ledger(database: Database) -> Iterator[Database]:
    """A ledger to which another connection posts debits, batch after batch, for as long as the test runs."""
    engine = database.engine
    make_orgs(engine, *range(1, 9))
    make_prices(engine, BOLT, FINE)
    stop = threading.Event()
    failures: list[Exception] = []

    def keep_posting() -> None:
        source = random.Random(1)
        call_ids = count(1)
        try:
            while not stop.is_set():
                calls = []
                for call_id in islice(call_ids, 30):
                    org_id, tier = source.randint(1, 8), source.choice(["bolt", "fine"])
                    calls.append(a_call(org_id, call_id, tier, source.randint(1, 300 * SECOND_US)))
                post(engine, calls, datetime.now(UTC))
        except Exception as failure:  # noqa: BLE001 - told to the test's own thread
            failures.append(failure)

    writer = threading.Thread(target=keep_posting)
    writer.start()
    yield database
    stop.set()
    writer.join(30)
    assert not writer.is_alive()
    assert failures == []


def test_audits_pass_while_debits_are_posted(busy_ledger: Database) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    seen: list[int] = []
    while len(set(seen)) < 6:
        assert datetime.now(UTC) < deadline, f"nothing was posted between audits: {seen}"
        report = run_audit(busy_ledger.engine)
        assert report.violations == []
        seen.append(report.counts["debits"])
    assert seen == sorted(seen)
