"""What the product made of simulated calls, and the comparison with telephony's record."""

from collections import Counter
from datetime import UTC, datetime

from sqlalchemy import Connection, insert

from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.models import RejectedEvent, Transaction
from db.postgres.engine import transaction
from metering.rules.rejections import Reason
from metering.sandbox.telephony.call_record import CallRecord, OrgRecord
from metering.trials.outcome import Outcome, differences, last_rejection_id
from tests.conftest import Database

NOW = datetime(2026, 4, 20, 18, 25, 6, tzinfo=UTC)


def debit(connection: Connection, org_id: int, call_id: int, minutes: int, cents: int) -> None:
    connection.execute(
        insert(Transaction).values(
            org_id=org_id,
            kind="debit",
            amount_cents=-cents,
            balance_after_cents=0,
            created_at=NOW,
            description="",
            call_id=call_id,
            billable_seconds=60 * minutes,
        )
    )


def reject(connection: Connection, stream_id: str, reason: Reason) -> None:
    connection.execute(
        insert(RejectedEvent).values(
            stream_id=stream_id,
            reason=reason.value,
            detail="",
            raw=b"",
            raw_length_bytes=0,
            raw_sha256=b"",
            received_at=NOW,
        )
    )


def test_it_reads_debits_balances_and_rejections_piece_by_piece(database: Database) -> None:
    with transaction(database.engine) as connection:
        one, two, other = (create_org(connection, name, NOW) for name in ("one", "two", "other"))
        adjust(connection, one, amount_cents=500, reason="r", key="k")
        reject(connection, "1-0", Reason.TOO_LARGE)  # from before, although the id is the same
        outcome = Outcome([one, two], last_rejection_id(connection))
        debit(connection, one, 1, 2, 16)
        debit(connection, two, 1, 1, 5)
        debit(connection, other, 1, 1, 5)
        reject(connection, "2-0", Reason.UNKNOWN_ORG)
        reject(connection, "9-0", Reason.UNKNOWN_ORG)  # somebody else's
    with database.engine.connect() as connection:
        outcome.read(connection, {"1-0", "2-0"})
        assert outcome.orgs == {one: OrgRecord(1, 2, 16), two: OrgRecord(1, 1, 5)}
        assert outcome.rejections == {"unknown_org": 1}
        assert outcome.balances_cents == {one: 500, two: 0}
    with transaction(database.engine) as connection:
        debit(connection, one, 2, 10, 100)
    with database.engine.connect() as connection:
        outcome.read(connection, {"1-0", "2-0"})
        outcome.read(connection, {"1-0", "2-0"})
    assert outcome.orgs == {one: OrgRecord(2, 12, 116), two: OrgRecord(1, 1, 5)}
    assert (outcome.calls, outcome.minutes, outcome.cents) == (3, 13, 121)
    assert outcome.rejections == {"unknown_org": 1}


def test_no_rejections_are_fine(database: Database) -> None:
    with database.engine.connect() as connection:
        assert last_rejection_id(connection) == 0


def outcome_of(orgs: dict[int, OrgRecord], rejections: dict[str, int]) -> Outcome:
    return Outcome([1, 2], 0, orgs=orgs, rejections=Counter(rejections))


def test_agreement_has_no_differences() -> None:
    record = CallRecord(orgs={1: OrgRecord(1, 2, 16)}, rejections=Counter({Reason.TOO_LARGE: 2}))
    assert differences(record, outcome_of({1: OrgRecord(1, 2, 16)}, {"too_large": 2})) == []


def test_each_org_and_each_reason_that_differs_is_named() -> None:
    record = CallRecord(orgs={1: OrgRecord(1, 2, 16)}, rejections=Counter({Reason.TOO_LARGE: 2}))
    found = differences(record, outcome_of({2: OrgRecord(1, 1, 5)}, {"unknown_tier": 1}))
    assert found == [
        "Org 1 was billed 0 calls, 0 minutes, 0 cents; telephony's record says 1 calls, 2 minutes, 16 cents.",
        "Org 2 was billed 1 calls, 1 minutes, 5 cents; telephony's record says 0 calls, 0 minutes, 0 cents.",
        "0 events were rejected as too_large; telephony's record says 2.",
        "1 events were rejected as unknown_tier; telephony's record says 0.",
    ]


def test_a_cent_or_a_minute_is_a_difference() -> None:
    record = CallRecord(orgs={1: OrgRecord(1, 2, 16)})
    for billed in (OrgRecord(1, 2, 17), OrgRecord(1, 3, 16), OrgRecord(2, 2, 16)):
        assert len(differences(record, outcome_of({1: billed}, {}))) == 1
