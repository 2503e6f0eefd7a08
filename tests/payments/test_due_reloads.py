"""What a turn of the reload rule costs: it follows what is due, not how many orgs are paused."""

import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

import db.attempts.reload_rule
from db.attempts.statements import DUE_RELOADS
from db.postgres.engine import transaction
from metering.rules.reloads import CLOCK_MARGIN
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld
from workers.payment_reconciler import ReloadRule

MAY = datetime(2026, 5, 1, tzinfo=UTC)
PAUSED = 20_000

ACCOUNTS = """
    INSERT INTO accounts (org_id, name, created_at, auto_reload_enabled, auto_reload_minimum_cents, auto_reload_amount_cents,
        stripe_customer_id, default_payment_method_id)
    SELECT n, 'Paused', %(at)s, true, 1000, 5000, 'cus_' || n, 'pm_' || n FROM generate_series(1000, 999 + %(count)s) AS n
"""
STATES = """
    INSERT INTO reload_states (org_id, pause_code, pause_lifts_with, paused_at, paused_until, skip_reason, skip_since, ask_at)
    SELECT n, 'card_declined', %(lifts_with)s, %(at)s, %(until)s, 'paused', %(at)s, %(until)s
    FROM generate_series(1000, 999 + %(count)s) AS n
"""


def pause_many(world: ReloadWorld, *, count: int = PAUSED, until: datetime | None = None) -> None:
    """Orgs that want to be reloaded and are paused: for good, or until a time."""
    assert world.admin is not None
    values = {
        "at": world.clock(),
        "count": count,
        "until": until,
        "lifts_with": "time" if until else "change",
    }
    for statement in (ACCOUNTS, STATES):
        world.admin.execute(statement, values)
    world.admin.execute("ANALYZE accounts, reload_states")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each time that the rule's facts were read: for how many orgs."""
    numbers: list[int] = []
    facts = db.attempts.reload_rule._facts

    def note(connection: Any, orgs: Mapping[int, datetime]) -> Iterable[Any]:
        numbers.append(len(orgs))
        return facts(connection, orgs)

    monkeypatch.setattr(db.attempts.reload_rule, "_facts", note)
    return numbers


@pytest.mark.parametrize("until", [None, MAY], ids=["for good", "until a time"])
def test_a_turn_does_not_ask_for_those_that_wait(
    reloading: ReloadWorld, asked: list[int], until: datetime | None
) -> None:
    pause_many(reloading, until=until)
    rule = ReloadRule(reloading.payments)
    for _ in range(3):
        rule.run_once(threading.Event())
    assert sum(asked) <= 3 * db.attempts.reload_rule.WALK_PAGE < PAUSED / 10


def test_what_is_due_is_found_by_an_index(reloading: ReloadWorld) -> None:
    """Of 20,000 that are paused until May, Postgres touches none in April, and two pages for the two that are due."""
    pause_many(reloading, until=MAY)
    with transaction(reloading.engine) as connection:
        connection.execute(
            text("UPDATE reload_states SET ask_at = :at WHERE org_id IN (1500, 9500)"),
            {"at": MAY - timedelta(days=9)},
        )
    with reloading.engine.connect() as connection:
        values = {
            "now": MAY - timedelta(days=1),
            "after_at": db.attempts.reload_rule.SINCE_EVER,
            "after": 0,
            "limit": 500,
        }
        [plan] = connection.execute(
            text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {DUE_RELOADS.text}"), values
        ).scalar_one()
    top = plan["Plan"]
    assert top["Actual Rows"] == 2
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] <= 20
    assert looked_at(top) <= 10


def looked_at(node: dict[str, Any]) -> float:
    """Rows that a plan's scans read, those that were thrown away included."""
    own = node.get("Rows Removed by Filter", 0) + node["Actual Rows"] if "Scan" in node["Node Type"] else 0
    below = sum(looked_at(each) for each in node.get("Plans", ()))
    return float(own * node["Actual Loops"]) + below


def test_every_org_whose_time_has_come_is_asked_in_one_turn(reloading: ReloadWorld, asked: list[int]) -> None:
    """More than a page of them, all with the same time."""
    pause_many(reloading, count=1_200, until=MAY)
    reloading.clock.at = MAY
    ReloadRule(reloading.payments).run_once(threading.Event())
    assert len(reloading.rows("SELECT FROM payment_attempts WHERE kind = 'auto_reload'")) == 1_200


def test_a_lifted_pause_is_asked_for_in_its_second_and_not_before(
    reloading: ReloadWorld, asked: list[int]
) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(card="pm_card_chargeCustomerFail")
    reloading.call(1)
    reloading.work()
    until = reloading.rows("SELECT ask_at, paused_until FROM reload_states")[0]
    assert until.ask_at == until.paused_until == reloading.clock() + timedelta(hours=1)

    asked.clear()
    reloading.clock.at = until.ask_at - timedelta(milliseconds=1)
    assert list(db.attempts.reload_rule.ask_due(reloading.engine)) == []
    assert asked == []
    reloading.clock.at = until.ask_at
    [reloads] = db.attempts.reload_rule.ask_due(reloading.engine)
    assert [org_id for org_id, _ in reloads.attempts] == [1]
    assert reloading.rows("SELECT ask_at FROM reload_states")[0].ask_at is None


def test_who_is_at_the_limit_is_asked_when_the_month_turns(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=AMOUNT - 1)
    reloading.call(1)
    assert reloading.rows("SELECT ask_at FROM reload_states")[0].ask_at == MAY + CLOCK_MARGIN

    reloading.clock.at = MAY + CLOCK_MARGIN
    reloading.ask_rule()
    state = reloading.rows("SELECT skip_reason, ask_at FROM reload_states")[0]
    assert (state.skip_reason, state.ask_at) == (
        "monthly_limit",
        datetime(2026, 6, 1, tzinfo=UTC) + CLOCK_MARGIN,
    )
    assert reloading.said() == ["skipped monthly_limit"], "it is said once"


def test_what_a_program_of_before_has_written_is_asked_for_too(reloading: ReloadWorld) -> None:
    """One that runs beside this one knows nothing of `ask_at`: a new row is due, and the walk finds what it has changed."""
    pause_many(reloading, count=1_000)
    reloading.make_org(2, MINIMUM)
    reloading.enable(org_id=2)
    reloading.adjust(MINIMUM)
    reloading.enable()
    with reloading.engine.begin() as connection:
        connection.execute(
            text("UPDATE accounts SET balance_cents = 0, version = version + 1 WHERE org_id IN (1, 2)")
        )
        connection.execute(
            text("""
                INSERT INTO reload_states (org_id, pause_code, pause_lifts_with, paused_at, paused_until, skip_reason)
                VALUES (1, 'card_declined', 'time', :at, :at, 'paused')
            """),
            {"at": reloading.clock()},
        )
    rule = ReloadRule(reloading.payments)
    assert [
        org_id for found in db.attempts.reload_rule.ask_due(reloading.engine) for org_id, _ in found.attempts
    ] == [1]

    for _ in range(1 + 1_002 // db.attempts.reload_rule.WALK_PAGE):
        rule.run_once(threading.Event())
    assert {each.org_id for each in reloading.rows("SELECT org_id FROM payment_attempts")} == {1, 2}
