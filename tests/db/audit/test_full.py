"""The audit finds each kind of damage, and nothing else."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, text

from db.accounts.orgs import create_org
from db.audit import windows
from db.audit.full import AuditReport, run_audit
from db.audit.invariants import INVARIANTS
from db.postgres.clock import ask_clock
from db.postgres.engine import make_engine, transaction
from metering.rules.events import MAX_DURATION_US
from metering.rules.pricing import MAX_INCREMENT_S, MAX_MINIMUM_S, Price
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.damages import DAMAGES, REBALANCE, RESTORE, UNPROTECT
from tests.db.audit.ledger import (
    BOLT,
    FINE,
    MAX_MICROUSD,
    NOW,
    SECOND_US,
    a_call,
    make_orgs,
    make_prices,
    post,
)


def broken(report: AuditReport) -> set[str]:
    return {violation.invariant for violation in report.violations}


def test_an_undamaged_ledger_passes_and_is_counted(ledger: Database) -> None:
    before = ask_clock(ledger.engine)
    report = run_audit(ledger.engine)

    assert report.violations == []
    assert report.passed
    assert not report.truncated
    assert before <= report.taken_at <= ask_clock(ledger.engine)
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
    # The rest have tables of their own: test_steps.py, and below tests/db/ledger test_daily_usage.py and test_repricing.py.
    assert set(INVARIANTS) - set().union(*(damage.breaks for damage in DAMAGES)) == windows.WHOLE_ONLY


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
            (
                "transaction 3, call 3: (80000,60,60,0,0,) are stored, tier bolt had (90000,60,60,0,0,) at"
                " 2026-04-20 18:26:06.201+00"
            ),
        )
    ]


def test_a_price_set_after_a_call_from_ahead_of_the_clock_is_no_damage(database: Database) -> None:
    engine = database.engine
    make_orgs(engine, 1)
    make_prices(engine, BOLT)
    now = ask_clock(engine)
    post(engine, [a_call(1, 1, "bolt", SECOND_US, now + timedelta(minutes=5))])
    make_prices(engine, Price("bolt", now + timedelta(minutes=2), 90_000, 60, 60, 0, 0), now=now)

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


def test_audits_pass_while_debits_are_posted(busy_ledger: Database) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    seen: list[int] = []
    while len(set(seen)) < 6:
        assert datetime.now(UTC) < deadline, f"nothing was posted between audits: {seen}"
        report = run_audit(busy_ledger.engine)
        assert report.violations == []
        seen.append(report.counts["debits"])
    assert seen == sorted(seen)
