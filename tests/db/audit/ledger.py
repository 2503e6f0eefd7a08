"""The ledger that the audits are tried on."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.ledger.post_calls import post_calls, price_call
from db.ledger.price_book import load_price_book
from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.rules.events import CallEvent
from metering.rules.money import MAX_USD, MICROUSD_PER_USD
from metering.rules.pricing import Price

NOW = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)
SECOND_US = 1_000_000

MAX_MICROUSD = MAX_USD * MICROUSD_PER_USD
BOLT = Price("bolt", None, 80_000, 60, 60, 0, 0)
FINE = Price("fine", None, 333_333, 30, 6, 45, 10_000)


def a_call(org_id: int, call_id: int, tier: str, duration_us: int, ended_at: datetime = NOW) -> CallEvent:
    return CallEvent(call_id, org_id, tier, "outbound", duration_us, ended_at, None, None, "{}")


def post(engine: Engine, calls: Sequence[CallEvent]) -> None:
    """Bill calls as a meter does."""
    with transaction(engine) as connection:
        book = load_price_book(connection)
        priced = []
        for call in calls:
            price = book.in_force(
                call.tier, call.org_id, call.ended_at - timedelta(microseconds=call.duration_us)
            )
            assert price is not None
            priced.append(price_call(f"1-{call.call_id}", b"", call, price))
        posted = post_calls(connection, priced, [], price_book_version=book.version)
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
        adjust(connection, org_id, amount_cents=amount_cents, reason="paid in", key="first")


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


def bill_five_calls(engine: Engine, org_id: int) -> None:
    """In three postings."""
    post(engine, [a_call(org_id, 101, "bolt", 61 * SECOND_US), a_call(org_id, 102, "fine", 75_000_001)])
    post(engine, [a_call(org_id, 103, "bolt", 1), a_call(org_id, 104, "fine", 2_000)])
    post(engine, [a_call(org_id, 105, "bolt", 180 * SECOND_US)])
