"""When orgs were exhausted, by the ledger: from the debit that took the balance to 0 or below until it is above 0 again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, text

from metering.rules.gates import SignalType
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.signal_history import Message, Position

# An org's transactions are committed in the order of their ids, so nothing turns up later below the highest that was seen.
_EXHAUSTED_SINCE = text("""
    SELECT org_id, id, kind, call_id, amount_cents, balance_after_cents
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:last_ids AS bigint[])) AS seen (org_id, last_id)
    JOIN transactions USING (org_id)
    WHERE transactions.id > seen.last_id AND balance_after_cents <= 0
    ORDER BY org_id, id
""")


@dataclass(slots=True)
class Exhaustion:
    """One time that an org was exhausted."""

    org_id: int
    call_id: int | None
    """The call whose debit did it; None if it was no call."""
    crossed_to_cents: int
    """The balance after that debit, 0 or below."""
    lowest_cents: int
    debits: list[tuple[int, int]] = field(default_factory=list)
    """The calls that were billed after it: their ids, and what each cost in cents."""
    balances_cents: set[int] = field(default_factory=set)
    """Every balance that the org had while it was exhausted."""


@dataclass
class Exhaustions:
    """Every time that one of some orgs was exhausted, in the order in which it happened to each; `read` brings it up to date."""

    org_ids: Sequence[int]
    of: dict[int, list[Exhaustion]] = field(default_factory=dict)
    _last_ids: dict[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(map(len, self.of.values()))

    def read(self, connection: Connection) -> None:
        """Take in what was committed since the last time."""
        last_ids = [self._last_ids.get(org_id, 0) for org_id in self.org_ids]
        seen = {"org_ids": list(self.org_ids), "last_ids": last_ids}
        for row in connection.execute(_EXHAUSTED_SINCE, seen):
            exhaustions = self.of.setdefault(row.org_id, [])
            if row.balance_after_cents - row.amount_cents > 0:
                exhaustions.append(
                    Exhaustion(row.org_id, row.call_id, row.balance_after_cents, row.balance_after_cents)
                )
            elif exhaustions and row.kind == "debit":
                exhaustions[-1].debits.append((row.call_id, -row.amount_cents))
            if exhaustions:
                exhaustions[-1].lowest_cents = min(exhaustions[-1].lowest_cents, row.balance_after_cents)
                exhaustions[-1].balances_cents.add(row.balance_after_cents)
            self._last_ids[row.org_id] = row.id


_Signal = TypeVar("_Signal")


def paired(
    exhaustions: Iterable[Exhaustion], signals: Iterable[tuple[Message, _Signal]]
) -> Iterator[tuple[Exhaustion, _Signal]]:
    """Each of one org's exhaustions that was signalled, with the signal: the balance that it tells is one that the org had then.

    An exhaustion has none if it was over before a meter, which says what has become of a whole batch, came to say so.
    """
    left = iter(exhaustions)
    for message, signal in signals:
        if message.type is not SignalType.EXHAUSTED:
            continue
        for exhaustion in left:
            if message.balance_cents in exhaustion.balances_cents:
                yield exhaustion, signal
                break


@dataclass(slots=True)
class Overspending:
    """How far below zero an org went, the time that it went furthest, and what brought it there. Amounts in cents, 0 or more."""

    org_id: int
    lowest_cents: int
    crossing_cents: int
    """What the debit that crossed zero took below it."""
    running: int = 0
    """Calls that ran when the gate closed: they had started while it was open, and are never cut."""
    running_cents: int = 0
    ended: int = 0
    """Calls that had ended by then, and were billed afterwards."""
    ended_cents: int = 0


def explain(
    exhaustion: Exhaustion, closed_at: Position | None, admissions: AdmissionLog, began_at_s: float
) -> Overspending:
    """Why an org went as far below zero as it did. A call that telephony doesn't know counts as ended.

    `closed_at` is when its gate closed, None if that was never said; `began_at_s` is when telephony began, by the same clock.
    """
    found = Overspending(exhaustion.org_id, exhaustion.lowest_cents, -exhaustion.crossed_to_cents)
    closed_s = 0.0 if closed_at is None else closed_at[0] / 1000 - began_at_s
    for call_id, cents in exhaustion.debits:
        call = admissions.calls.get((exhaustion.org_id, call_id))
        if call is not None and call.ended_s > closed_s:
            found.running += 1
            found.running_cents += cents
        else:
            found.ended += 1
            found.ended_cents += cents
    return found
