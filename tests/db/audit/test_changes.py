"""The audit of changes finds what the full one finds, wherever something is new; and looks at nothing twice."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from db.audit import changes as audit_changes
from db.audit import windows
from db.audit.changes import Changes
from db.audit.full import Violation, find_violations_apart, run_audit
from db.audit.invariants import INVARIANTS
from db.audit.passes import CHANGES, WHOLE, Claim, claim_pass, finish_pass, read_standing
from db.postgres.engine import transaction
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.damages import COPY_OF_CALL_105, DAMAGES, REBALANCE, RESTORE, UNPROTECT
from tests.db.audit.ledger import (
    BOLT,
    FINE,
    NOW,
    PAYMENTS,
    a_call,
    bill_five_calls,
    make_orgs,
    make_prices,
    pay_in,
    post,
)

# Keeps what the audit has vouched for, and brings it back.
KEEP_PLACE = "CREATE TABLE kept_place AS TABLE audited_accounts"
GO_BACK = "TRUNCATE audited_accounts, audit_suspects; INSERT INTO audited_accounts TABLE kept_place"


def audit(database: Database, *, since: datetime | None = None) -> Changes:
    return audit_changes.audit_changes(database.engine, since=since)


def finish(
    database: Database, name: str, violations: Iterable[Violation], *, cleared: Iterable[int] = ()
) -> None:
    """Claim a pass, and bring it to its end with what was found."""
    claim = claim_pass(database.engine, name, NOW, every=timedelta(0), rest=0, lease=timedelta(minutes=1))
    assert claim is not None
    assert finish_pass(database.engine, claim, NOW, violations, cleared=cleared)


def named(changes: Changes) -> set[tuple[str, int | None]]:
    return {(each.invariant, each.org_id) for each in changes.violations}


def named_by_full_audit(database: Database) -> set[tuple[str, int | None]]:
    report = run_audit(database.engine)
    return {(each.invariant, each.org_id) for each in report.violations}


def vouched(database: Database) -> set[int]:
    with transaction(database.engine) as connection:
        return set(connection.scalars(text("SELECT org_id FROM audited_accounts")))


def test_every_invariant_is_looked_at_in_one_way() -> None:
    ways = [
        *(windows.STEPS, windows.ROWS, windows.KEYS, windows.WHOLE_ONLY),
        *(
            windows.ORPHANS,
            windows.PAYMENTS,
            windows.OWNERSHIP,
            windows.OPEN_ATTEMPTS,
            windows.EVENTS,
        ),
    ]
    assert sorted(name for way in ways for name in way) == sorted(INVARIANTS)


@pytest.mark.long
def test_where_everything_is_new_it_finds_what_the_full_audit_finds(ledger: Database) -> None:
    execute_as(ledger.admin_url, UNPROTECT, KEEP_PLACE)
    for damage in DAMAGES:
        execute_as(ledger.admin_url, damage.script, *[REBALANCE] * damage.rebalanced)
        assert named(audit(ledger)) == named_by_full_audit(ledger), damage.name
        execute_as(ledger.admin_url, RESTORE, GO_BACK)

    assert audit(ledger).violations == []
    assert vouched(ledger) == {1, 2, 3, 4, 5}


# Damage to what was vouched for: left to the pass over everything.
OF_OLD_ROWS = {
    "an adjustment's amount",
    "a second writing of an adjustment",
    "an adjustment made a refund that gives money",
    "an adjustment of 0 cents",
    "a kind that there isn't",
    "an adjustment without its key",
    "the first row missing",
}


@pytest.fixture
def half_new(database: Database) -> Database:
    """As `ledger`; but that what was paid in first has been audited before."""
    engine = database.engine
    make_orgs(engine, 1, 2, 3, 4)
    make_prices(engine, BOLT, FINE)
    for org_id in (1, 2):
        pay_in(engine, org_id, 10_000)
    assert audit(database).transactions == 2
    for org_id in (1, 2):
        bill_five_calls(engine, org_id)
    pay_in(engine, 4, 500)
    execute_as(database.admin_url, PAYMENTS)
    return database


def test_behind_what_was_vouched_for_it_finds_what_the_full_audit_finds(half_new: Database) -> None:
    execute_as(half_new.admin_url, UNPROTECT, KEEP_PLACE)
    for damage in DAMAGES:
        execute_as(half_new.admin_url, damage.script, *[REBALANCE] * damage.rebalanced)
        if damage.name not in OF_OLD_ROWS:
            assert named(audit(half_new)) == {(name, damage.org_id) for name in damage.breaks}, damage.name
        execute_as(half_new.admin_url, RESTORE, GO_BACK)

    changes = audit(half_new)
    assert changes.violations == []
    assert (changes.orgs, changes.transactions) == (4, 10 + 1 + 4)  # org 3 has nothing new


def test_nothing_is_looked_at_twice(ledger: Database) -> None:
    first = audit(ledger)
    assert (first.orgs, first.transactions, first.complete) == (5, 17, True)

    again = audit(ledger)
    assert (again.orgs, again.transactions, again.violations) == (0, 0, [])

    post(ledger.engine, [a_call(2, 200, "bolt", 1)])
    third = audit(ledger)
    assert (third.orgs, third.transactions, third.violations) == (1, 1, [])


@pytest.mark.parametrize(
    ("damage", "breaks"),
    [
        (
            "UPDATE accounts SET balance_cents = balance_cents + 1 WHERE org_id = 1",
            {"balance_is_sum", "balance_is_last"},
        ),
        (
            "UPDATE accounts SET transaction_count = transaction_count - 1 WHERE org_id = 1",
            {"transactions_counted"},
        ),
        (
            "UPDATE accounts SET last_posted_at = last_posted_at + interval '1 s' WHERE org_id = 1",
            {"last_posted_at_is_newest"},
        ),
        (
            "DELETE FROM transactions WHERE org_id = 1 AND call_id = 105",
            {"transactions_counted", "balance_is_sum", "balance_is_last", "last_posted_at_is_newest"},
        ),
        (
            "DELETE FROM transactions WHERE org_id = 1",
            {"transactions_counted", "balance_is_sum", "last_posted_at_is_newest"},
        ),
        (
            COPY_OF_CALL_105.format(org_id=1, call_id=106),
            {"transactions_counted", "balance_is_sum", "chain_unbroken"},
        ),
        (COPY_OF_CALL_105.format(org_id=404, call_id=1), {"account_exists"}),
        ("DELETE FROM accounts WHERE org_id = 1", {"account_exists"}),
        (
            "UPDATE payment_attempts SET status = 'failed', looked_at = '2099-01-01' WHERE payment_intent_id = 'pi_3'",
            {"attempt_credited", "credit_has_attempt"},
        ),
    ],
)
def test_what_shows_in_an_account_is_found_at_once_though_nothing_was_posted(
    ledger: Database, damage: str, breaks: set[str]
) -> None:
    execute_as(ledger.admin_url, UNPROTECT)
    assert audit(ledger).violations == []
    execute_as(ledger.admin_url, damage)
    assert {name for name, _ in named(audit(ledger, since=NOW))} == breaks


def test_old_damage_is_left_to_the_whole_pass_and_then_looked_at_until_it_is_mended(ledger: Database) -> None:
    execute_as(ledger.admin_url, UNPROTECT)
    assert audit(ledger).violations == []
    execute_as(
        ledger.admin_url, "UPDATE transactions SET description = 'x' WHERE org_id = 1 AND call_id = 103"
    )
    assert audit(ledger).violations == []

    found = find_violations_apart(ledger.engine, stop=lambda: False, limit_per_invariant=9)
    assert found is not None
    finish(ledger, WHOLE, found)
    assert read_standing(ledger.engine).violations["description_matches"] == 1

    for _ in "12":
        changes = audit(ledger)
        assert named(changes) == {("description_matches", 1)}
        assert changes.transactions == 6  # all that the org has, and no other org's
        finish(ledger, CHANGES, changes.violations, cleared=changes.cleared)
        assert sum(read_standing(ledger.engine).violations.values()) == 1

    execute_as(ledger.admin_url, RESTORE)
    mended = audit(ledger)
    assert (mended.violations, mended.cleared) == ([], {1})
    finish(ledger, CHANGES, [], cleared=mended.cleared)
    assert set(read_standing(ledger.engine).violations.values()) == {0}
    assert audit(ledger).orgs == 0


def test_a_pass_over_everything_takes_no_finding_back(ledger: Database) -> None:
    execute_as(ledger.admin_url, "UPDATE accounts SET balance_cents = 7 WHERE org_id = 3")
    found = audit(ledger).violations
    finish(ledger, CHANGES, found)
    finish(ledger, WHOLE, [])
    assert read_standing(ledger.engine).violations["balance_is_sum"] == 1


def test_new_transactions_are_looked_at_in_pages(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_changes, "TRANSACTIONS_AT_ONCE", 7)
    monkeypatch.setattr(audit_changes, "ORGS_AT_ONCE", 2)
    sizes: list[int] = []
    at_window = audit_changes._ChangeAudit.at_window

    def note(*arguments: object) -> int:
        sizes.append(at_window(*arguments))  # type: ignore[arg-type]
        return sizes[-1]

    monkeypatch.setattr(audit_changes._ChangeAudit, "at_window", note)
    assert audit(ledger).transactions == 17
    assert sizes == [6, 6, 1, 4]  # orgs 1, 2, 3 with 4, 5

    stops = iter([False, True])
    execute_as(ledger.owner_url, "TRUNCATE audited_accounts")
    changes = audit_changes.audit_changes(ledger.engine, since=None, stop=lambda: next(stops))
    assert (changes.complete, vouched(ledger)) == (False, {1})


def test_while_debits_are_posted_nothing_looks_wrong_and_nothing_is_passed_over(
    busy_ledger: Database,
) -> None:
    seen = 0
    for _ in range(12):
        changes = audit(busy_ledger)
        assert changes.violations == []
        seen += changes.transactions
        with transaction(
            busy_ledger.engine.execution_options(isolation_level="REPEATABLE READ")
        ) as connection:
            audited, posted = connection.execute(
                text("""
                    SELECT sum(audited.transaction_count), (SELECT count(*) FROM transactions JOIN audited_accounts AS a
                        ON a.org_id = transactions.org_id AND id <= a.transaction_id) FROM audited_accounts AS audited
                """)
            ).one()
        assert audited == posted == seen


EVERY = timedelta(minutes=1)
LEASE = timedelta(minutes=10)


def claim(database: Database, at: datetime, *, rest: int = 10) -> Claim | None:
    return claim_pass(database.engine, CHANGES, at, every=EVERY, rest=rest, lease=LEASE)


def test_one_at_a_time_makes_a_pass(database: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        claims = [each for each in threads.map(lambda _: claim(database, NOW), range(8)) if each]
    assert [each.seen_to for each in claims] == [None]

    # It hasn't come to its end, and may yet: until its lease is over.
    assert claim(database, NOW + EVERY) is None
    late = NOW + LEASE
    second = claim(database, late)
    assert second is not None
    assert second.seen_to is None

    # The first one comes to life again, and counts for nothing.
    finish_pass(database.engine, claims[0], late, [])
    assert read_standing(database.engine).finished_at == {CHANGES: None}
    finish_pass(database.engine, second, late + timedelta(seconds=3), [])
    assert read_standing(database.engine).finished_at == {CHANGES: late + timedelta(seconds=3)}

    # It took 3 s: ten times as long is less than a minute. With a rest of 30 times, it is more.
    assert claim(database, late + timedelta(seconds=59)) is None
    assert claim(database, late + timedelta(seconds=89), rest=30) is None
    third = claim(database, late + timedelta(seconds=90), rest=30)
    assert third is not None
    assert third.seen_to == late


def test_whoever_lost_a_pass_to_another_process_notes_nothing(database: Database) -> None:
    def claim(at: datetime) -> Claim | None:
        return claim_pass(
            database.engine, CHANGES, at, every=timedelta(0), rest=0, lease=timedelta(minutes=1)
        )

    frozen = claim(NOW)
    other = claim(NOW + timedelta(minutes=2))
    assert frozen is not None
    assert other is not None
    at = NOW + timedelta(minutes=3)
    found = [Violation("balance_is_sum", 7, "wrong")]
    assert finish_pass(database.engine, other, at, found)
    assert not finish_pass(database.engine, frozen, at, [], cleared=[7])
    assert read_standing(database.engine).violations["balance_is_sum"] == 1
    with transaction(database.engine) as connection:
        assert list(connection.scalars(text("SELECT org_id FROM audit_suspects"))) == [7]


def test_where_more_is_wrong_than_is_listed_nobody_is_vouched_for_or_cleared(ledger: Database) -> None:
    execute_as(ledger.admin_url, "UPDATE accounts SET balance_cents = balance_cents + 1")

    def audited() -> Changes:
        return audit_changes.audit_changes(ledger.engine, since=None, limit_per_invariant=1)

    wrong = audit(ledger)
    assert len({each.org_id for each in wrong.violations}) > 1
    changes = audited()
    assert changes.violations
    assert (vouched(ledger), changes.cleared) == (set(), set())


def test_passes_of_two_kinds_do_not_wait_for_each_other(database: Database) -> None:
    assert claim(database, NOW) is not None
    assert claim_pass(database.engine, WHOLE, NOW, every=EVERY, rest=1, lease=LEASE) is not None


def test_whoever_is_told_to_stop_leaves_the_whole_pass(database: Database) -> None:
    asked: Iterator[bool] = iter([False, False, True])
    found = find_violations_apart(database.engine, stop=lambda: next(asked), limit_per_invariant=1)
    assert found is None
