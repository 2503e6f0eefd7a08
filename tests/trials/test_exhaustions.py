"""When orgs were exhausted, by the ledger, and why they went as far below zero as they did."""

from datetime import UTC, datetime

from sqlalchemy import insert

from db.accounts.orgs import create_org
from db.ledger.adjustments import adjust
from db.models import Transaction
from db.postgres.engine import transaction
from metering.rules.gates import SignalType
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.calls import Attempt
from metering.sandbox.telephony.signal_history import Message
from metering.trials.exhaustions import Exhaustion, Exhaustions, Overspending, explain, paired
from tests.conftest import Database

NOW = datetime(2026, 4, 20, 18, 25, 6, tzinfo=UTC)


class Ledger:
    """Writes to a ledger by hand."""

    def __init__(self, database: Database) -> None:
        self.engine = database.engine
        with transaction(self.engine) as connection:
            self.org_id = create_org(connection, "one", NOW)
        self.balance_cents = 0
        self.exhaustions = Exhaustions([self.org_id])

    def credit(self, cents: int, key: str) -> None:
        with transaction(self.engine) as connection:
            adjust(connection, self.org_id, amount_cents=cents, reason="r", key=key)
        self.balance_cents += cents

    def debits(self, *debits: tuple[int, int]) -> None:
        with transaction(self.engine) as connection:
            for call_id, cents in debits:
                self.balance_cents -= cents
                connection.execute(
                    insert(Transaction).values(
                        org_id=self.org_id,
                        kind="debit",
                        amount_cents=-cents,
                        balance_after_cents=self.balance_cents,
                        created_at=NOW,
                        description="",
                        call_id=call_id,
                        billable_seconds=60,
                    )
                )

    def read(self) -> list[Exhaustion]:
        with self.engine.connect() as connection:
            self.exhaustions.read(connection)
        return self.exhaustions.of.get(self.org_id, [])


def test_each_time_is_read_piece_by_piece(database: Database) -> None:
    ledger = Ledger(database)
    ledger.credit(20, "first")
    ledger.debits((1, 12))
    assert ledger.read() == []
    ledger.debits((2, 8))  # exactly 0 is exhausted
    assert ledger.read() == [Exhaustion(ledger.org_id, 2, 0, 0, [], {0})]
    ledger.debits((3, 5), (4, 14))
    ledger.read()
    assert ledger.read() == [Exhaustion(ledger.org_id, 2, 0, -19, [(3, 5), (4, 14)], {0, -5, -19})]
    assert ledger.exhaustions.count == 1


def test_another_time_begins_when_the_balance_was_above_zero(database: Database) -> None:
    ledger = Ledger(database)
    ledger.credit(10, "first")
    ledger.debits((1, 12))
    with transaction(ledger.engine) as connection:  # the debits by hand have left the account alone
        connection.exec_driver_sql("UPDATE accounts SET balance_cents = %s", (ledger.balance_cents,))
    ledger.credit(10, "refill")
    ledger.debits((2, 9))
    assert [(each.call_id, each.crossed_to_cents) for each in ledger.read()] == [(1, -2), (2, -1)]


def test_signals_find_the_time_that_they_are_about() -> None:
    one = Exhaustion(1, 10, -1, -4, balances_cents={-1, -4})
    unsaid = Exhaustion(1, 11, -7, -7, balances_cents={-7})
    three = Exhaustion(1, 12, -3, -9, balances_cents={-3, -9})
    signals = [
        (Message(SignalType.RESTORED, 1, 50, 1), "a"),
        (Message(SignalType.EXHAUSTED, 1, -4, 2), "b"),
        (Message(SignalType.RESTORED, 1, 50, 3), "c"),
        (Message(SignalType.EXHAUSTED, 1, -9, 4), "d"),
    ]
    assert list(paired([one, unsaid, three], signals)) == [(one, "b"), (three, "d")]
    assert list(paired([one], [])) == []


def test_calls_that_ran_are_told_from_those_that_had_ended() -> None:
    """Telephony began at second 100; the gate closed 5 s later."""
    admissions = AdmissionLog()
    for call_id, ended_s in ((2, 4.9), (3, 5.1), (4, 9.0)):
        admissions.decide(Attempt(1, 1, call_id, "inbound", ended_s), b"open", (1, 0))
    exhaustion = Exhaustion(1, 1, -3, -68, [(2, 5), (3, 10), (4, 20), (99, 30)])
    assert explain(exhaustion, (105_000, 7), admissions, 100.0) == Overspending(
        1, -68, crossing_cents=3, running=2, running_cents=30, ended=2, ended_cents=35
    )
