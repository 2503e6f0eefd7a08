"""The transaction that turns calls into debits: lock the orgs, sort out what is known, write, bring the balances up to date."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Final

import msgspec
import psycopg
from sqlalchemy import Connection

from db.attempts.reload_rule import Reloads, ask_reload_rule
from db.ledger.debit_rows import (
    END,
    NO_STEPS,
    START,
    pack_call,
    pack_debit,
    pack_posting,
    pack_stepped_posting,
    pack_terms,
    pack_used,
)
from db.ledger.monthly_usage import (
    Key,
    Usage,
    fill_usage,
    key_columns,
    month_number,
    usage_columns,
    usage_of_rows,
)
from db.ledger.rejections import RejectedEntry, keep_rejected
from db.ledger.statements import (
    CLOCK,
    COPY_DEBITS,
    COPY_STEPPED_DEBITS,
    EXISTING_ACCOUNTS,
    FIND_BILLED_CALLS,
    LOCK_ACCOUNTS,
    LOCK_FREE_ACCOUNTS,
    PRICE_BOOK_VERSION,
    READ_USAGE,
    UPDATE_ACCOUNTS,
    WRITE_USAGE,
)
from db.postgres.arrays import bigints, instants
from db.postgres.engine import driver_connection, execute_last
from db.postgres.exchange import Row, Statement, exchange
from db.postgres.instants import instant
from metering.rules.events import ENDS_TOO_LATE, CallEvent, latest_end, same_call
from metering.rules.gates import Balance
from metering.rules.pricing import Charge, Price, billable_seconds, charge_call, charge_seconds
from metering.rules.rejections import Reason, Rejection
from metering.runtime.crashpoints import CrashPoint, reach


class StalePriceBookError(Exception):
    """The calls were priced with a price book that is no longer the newest: load it again and price them anew."""


class PricedCall(msgspec.Struct, frozen=True, gc=False):
    """A call event, ready to be posted (`price_call` makes them).

    `price` is None where the price book doesn't know the tier, `charge` for 0 seconds; without a charge `row` is empty. What a
    price with steps charges is known only under the org's lock: until then `charge` knows the billable seconds alone, and `row`
    lacks the terms, so that it can't be written.
    """

    stream_id: str
    raw: bytes
    event: CallEvent
    price: Price | None
    charge: Charge | None
    row: bytes
    """The debit as it goes to Postgres, but for what is known only under the org's lock."""
    usage_key: Key | None = None
    """To what it adds, where the org's use of the tier in the month may be counted."""

    def reject(self, reason: Reason, detail: str) -> RejectedEntry:
        return RejectedEntry(self.stream_id, self.raw, Rejection(reason, detail))


def price_call(
    stream_id: str, raw: bytes, event: CallEvent, price: Price | None, *, usage_counted: bool = False
) -> PricedCall:
    """A call with the price that was in force when it started, if there is one; whatever can be done before its org is locked.

    `usage_counted`: a price of its org and tier has steps, or had (`PriceBook.counts_usage`).
    """
    if price is None:
        return PricedCall(stream_id, raw, event, None, None, b"")
    if not (usage_counted or price.steps):
        charge = charge_call(event.duration_us, price)
        row = b"" if charge is None else pack_debit(stream_id, event, price, charge)
        return PricedCall(stream_id, raw, event, price, charge, row)
    if not event.duration_us:
        return PricedCall(stream_id, raw, event, price, None, b"")
    month = month_number(event.ended_at - timedelta(microseconds=event.duration_us))
    key = (event.org_id, event.tier, month)
    if price.steps:
        charge = Charge(billable_seconds(event.duration_us, price), 0, "")
        return PricedCall(stream_id, raw, event, price, charge, pack_call(stream_id, event), key)
    charge = charge_call(event.duration_us, price)
    row = b"" if charge is None else pack_debit(stream_id, event, price, charge)
    return PricedCall(stream_id, raw, event, price, charge, row, key)


class BalanceChange(msgspec.Struct, gc=False):
    """What a transaction did to one org's account."""

    org_id: int
    balance_cents: int
    version: int
    transaction_count: int
    posted_us: int
    """The time of posting, as Postgres keeps it (`db.postgres.instants`): thousands are read and written at once."""
    now_us: int
    """Postgres's clock, read under the org's lock: what is decided, is decided by it. The same, unless the org's newest
    transaction has a later time."""
    reload_below_cents: int | None = None
    """The org wants to be reloaded below this balance; None while it has that disabled."""
    suspended: bool = False
    """By an operator: its gate is closed, whatever the balance."""
    max_concurrent_calls: int | None = None
    """By an operator; None is no limit."""

    @property
    def balance(self) -> Balance:
        """What the org's gate follows."""
        return Balance(
            self.org_id, self.balance_cents, self.version, self.suspended, self.max_concurrent_calls
        )

    @property
    def unchanged_balance(self) -> Balance:
        """The same, where the transaction leaves the account as it found it."""
        return msgspec.structs.replace(self.balance, version=self.version - 1)

    @property
    def posted_at(self) -> datetime:
        """The time of posting."""
        return instant(self.posted_us)

    @property
    def now(self) -> datetime:
        """Postgres's clock, read under the org's lock."""
        return instant(self.now_us)

    @property
    def wants_reload(self) -> bool:
        """Whether the reload rule has anything to look at."""
        return self.reload_below_cents is not None and self.balance_cents < self.reload_below_cents


@dataclass(slots=True)
class Posted:
    """What became of a batch. Every entry is counted once."""

    debits: list[PricedCall] = field(default_factory=list)
    unbilled: int = 0
    duplicates: int = 0
    rejected: list[RejectedEntry] = field(default_factory=list)
    deferred: list[PricedCall] = field(default_factory=list)
    """Left for later, untouched: somebody else holds the org's account."""
    changes: dict[int, BalanceChange] = field(default_factory=dict)
    """By org: the accounts as this transaction left them."""
    repeated: dict[int, BalanceChange] = field(default_factory=dict)
    """By org: the accounts that are as they were, but of which calls came again. Whoever billed those may not have lived to have
    their gates follow."""
    reloads: Reloads = field(default_factory=Reloads)
    """What the reload rule said to the orgs that want to be reloaded."""

    def add(self, other: "Posted") -> None:
        """Take in what became of a later part of the same batch."""
        self.debits += other.debits
        self.unbilled += other.unbilled
        self.duplicates += other.duplicates
        self.rejected += other.rejected
        self.deferred += other.deferred
        self.changes |= other.changes
        self.repeated |= other.repeated
        self.reloads.add(other.reloads)

    def balances(self) -> dict[int, Balance]:
        """What the gates of all these orgs follow."""
        found = {org_id: change.balance for org_id, change in self.changes.items()}
        for org_id, account in self.repeated.items():
            balance = account.unchanged_balance
            if org_id not in found or found[org_id].version < balance.version:
                found[org_id] = balance
        return found

    def rejections_by_reason(self) -> dict[str, int]:
        return dict(Counter(entry.rejection.reason.value for entry in self.rejected))


ROWS_AT_ONCE: Final = 1_000
"""How many are packed before they are sent: their bytes are held twice meanwhile."""

_ORG_ID: Final = attrgetter("event.org_id")


def lock_accounts(
    connection: psycopg.Connection, org_ids: Iterable[int], *, skip_locked: bool = False
) -> dict[int, BalanceChange]:
    """Lock the accounts that exist among `org_ids`, in order of id, and read them; with `skip_locked` only those that are free.

    Returns each as the start of a change, its version already raised by one. `posted_at` is the time of posting: Postgres's
    clock, read under the locks, and never before the account's newest transaction, so that id order is time order
    (docs/reference/money-rules.md#balances).
    """
    rows, [(now_us,)] = exchange(
        connection, [(_lock_statement(skip_locked), [bigints(list(set(org_ids)))]), (CLOCK, [])]
    )
    return _locked(rows, now_us)


def _lock_statement(skip_locked: bool) -> Statement:
    return LOCK_FREE_ACCOUNTS if skip_locked else LOCK_ACCOUNTS


def _locked(rows: Sequence[Row], now_us: int) -> dict[int, BalanceChange]:
    """The accounts that a lock statement found; Postgres's clock was read after it."""
    return {
        org_id: BalanceChange(
            org_id,
            balance_cents,
            version + 1,
            count,
            max(now_us, last_posted_us or now_us),
            now_us,
            reload_below_cents,
            suspended,
            max_calls,
        )
        for org_id, balance_cents, version, count, last_posted_us, reload_below_cents, suspended, max_calls in rows
    }


def write_accounts(connection: psycopg.Connection, changes: Iterable[BalanceChange]) -> None:
    """Bring accounts that this transaction has locked to what `changes` say."""
    exchange(connection, [(UPDATE_ACCOUNTS, _account_columns(changes))])


def _account_columns(changes: Iterable[BalanceChange]) -> tuple[bytes, ...]:
    listed = list(changes)
    return (
        bigints([change.org_id for change in listed]),
        bigints([change.balance_cents for change in listed]),
        bigints([change.version for change in listed]),
        bigints([change.transaction_count for change in listed]),
        instants([change.posted_us for change in listed]),
    )


def post_calls(
    connection: Connection,
    calls: Sequence[PricedCall],
    rejected: Sequence[RejectedEntry],
    *,
    price_book_version: int,
    skip_locked: bool = False,
) -> Posted:
    """Bill each of `calls` once, each org's in their order, and keep what can't be billed, in the caller's transaction.

    Each org is locked first, in a statement of its own; only then are calls that were billed before looked for. In one statement
    the look-up would run on a snapshot from before the wait, and a duplicate could slip past it.

    With `skip_locked` it waits for nobody: calls of an org whose account somebody else holds are deferred.

    Raises StalePriceBookError if `calls` were priced with another price book than the newest one.
    """
    driver = driver_connection(connection)
    posted = Posted(rejected=list(rejected))
    if calls:
        # An org's calls lie side by side in each index: a quarter less work for Postgres than in the order in which they came.
        calls = sorted(calls, key=_ORG_ID)
        org_ids = {call.event.org_id for call in calls}
        accounts, newest_price, now_us, known, usage = _lock_and_look(
            driver, org_ids, calls, skip_locked=skip_locked
        )
        held = _held_by_others(driver, org_ids - accounts.keys()) if skip_locked else set()
        reach(CrashPoint.LEDGER_AFTER_LOCK)
        if newest_price != price_book_version:
            raise StalePriceBookError
        if held:
            posted.deferred = [call for call in calls if call.event.org_id in held]
            calls = [call for call in calls if call.event.org_id not in held]
        _sort_out(calls, accounts, known, latest_end(instant(now_us)), posted)
        if posted.debits:
            tails, used = _charge_steps(driver, posted.debits, usage)
            if used:
                execute_last(connection, WRITE_USAGE, usage_columns(used))
            posted.changes = _write_debits(driver, posted.debits, tails, accounts)
            wanting = {org_id: each.now for org_id, each in posted.changes.items() if each.wants_reload}
            if wanting:
                write_accounts(driver, posted.changes.values())
                posted.reloads = ask_reload_rule(connection, wanting)
            else:
                execute_last(connection, UPDATE_ACCOUNTS, _account_columns(posted.changes.values()))
            for org_id in posted.repeated.keys() & posted.changes.keys():
                del posted.repeated[org_id]
    if posted.rejected:
        keep_rejected(driver, posted.rejected)
    reach(CrashPoint.LEDGER_AFTER_WRITE)
    return posted


def _held_by_others(driver: psycopg.Connection, org_ids: set[int]) -> set[int]:
    """Which of the orgs that couldn't be locked are there all the same."""
    if not org_ids:
        return set()
    [rows] = exchange(driver, [(EXISTING_ACCOUNTS, [bigints(list(org_ids))])])
    return {row[0] for row in rows}


def _lock_and_look(
    driver: psycopg.Connection,
    org_ids: set[int],
    calls: Sequence[PricedCall],
    *,
    skip_locked: bool,
) -> tuple[dict[int, BalanceChange], int, int, dict[tuple[int, int], CallEvent], Usage]:
    """Lock the orgs; then the price book's version and Postgres's clock; then those of `calls` that were billed before; then what
    was used before, where that counts.

    Sent together, because each round trip costs a small batch as much as its statement; Postgres takes them one after the other,
    each on a snapshot of its own, so that what is looked for is looked for under the locks.
    """
    keys = [bigints([call.event.org_id for call in calls]), bigints([call.event.call_id for call in calls])]
    asked: list[tuple[Statement, Sequence[bytes]]] = [
        (_lock_statement(skip_locked), [bigints(list(org_ids))]),
        (PRICE_BOOK_VERSION, []),
        (FIND_BILLED_CALLS, keys),
    ]
    counted = {key for call in calls if (key := call.usage_key) is not None}
    if counted:
        asked.append((READ_USAGE, key_columns(sorted(counted))))
    locked, [(newest_price, now_us)], billed, *used = exchange(driver, asked)
    known = {(row[0], row[1]): _billed_event(*row) for row in billed}
    usage = usage_of_rows(used[0]) if used else {}
    return _locked(locked, now_us), newest_price, now_us, known, usage


def _billed_event(
    org_id: int,
    call_id: int,
    tier: str,
    direction: str,
    duration_us: int,
    ended_us: int,
    phone_number_id: int | None,
    phone_number_value: str | None,
    metadata: str | None,
) -> CallEvent:
    return CallEvent(
        call_id=call_id,
        org_id=org_id,
        tier=tier,
        direction=direction,
        duration_us=duration_us,
        ended_at=instant(ended_us),
        phone_number_id=phone_number_id,
        phone_number_value=phone_number_value,
        metadata=metadata or "{}",
    )


def _sort_out(
    calls: Sequence[PricedCall],
    accounts: dict[int, BalanceChange],
    known: dict[tuple[int, int], CallEvent],
    latest: datetime,
    posted: Posted,
) -> None:
    """Tell what is to be debited from duplicates, conflicts, calls that cost nothing, that end after `latest`, and unknown orgs
    and tiers.
    """
    for call in calls:
        event = call.event
        key = (event.org_id, event.call_id)
        if event.ended_at > latest and known.get(key) != event:
            posted.rejected.append(call.reject(ENDS_TOO_LATE.reason, ENDS_TOO_LATE.detail))
        elif event.org_id not in accounts:
            posted.rejected.append(call.reject(Reason.UNKNOWN_ORG, f"org_id: there is no org {event.org_id}"))
        elif (billed := known.get(key)) is not None:
            if same_call(billed, event):
                posted.duplicates += 1
                posted.repeated[event.org_id] = accounts[event.org_id]
            else:
                detail = f"call_id: call {event.call_id} of org {event.org_id} was billed before with other content"
                posted.rejected.append(call.reject(Reason.CONFLICTING_DUPLICATE, detail))
        elif call.price is None:
            posted.rejected.append(call.reject(Reason.UNKNOWN_TIER, f"tier: there is no tier {event.tier!r}"))
        elif call.charge is None:
            posted.unbilled += 1
        else:
            known[key] = event
            posted.debits.append(call)


def _charge_steps(
    driver: psycopg.Connection, debits: list[PricedCall], usage: Usage
) -> tuple[dict[int, bytes], Usage]:
    """Charge, in their order, those of `debits` whose price has steps, and put them in their places.

    Gives the ends of their rows, by place, and what is used now, where that has changed: every debit of an org, tier and month
    adds to it once one of them was priced by steps.
    """
    counted = [(place, key, call) for place, call in enumerate(debits) if (key := call.usage_key) is not None]
    if not counted:
        return {}, {}
    missing = {
        key for _, key, call in counted if key not in usage and call.price is not None and call.price.steps
    }
    if missing:
        usage = usage | fill_usage(driver, sorted(missing))
    tails: dict[int, bytes] = {}
    used: Usage = {}
    for place, key, call in counted:
        price, charge = call.price, call.charge
        before_s = used.get(key)
        if before_s is None:
            before_s = usage.get(key)
        if before_s is None or price is None or charge is None:
            continue
        if price.steps:
            charge = charge_seconds(charge.billable_seconds, price, before_s)
            row = call.row + pack_terms(call.event, price, charge)
            debits[place] = PricedCall(call.stream_id, call.raw, call.event, price, charge, row, key)
            tails[place] = pack_used(before_s, price.steps)
        used[key] = before_s + charge.billable_seconds
    return tails, used


def _write_debits(
    driver: psycopg.Connection,
    debits: Sequence[PricedCall],
    tails: dict[int, bytes],
    accounts: dict[int, BalanceChange],
) -> dict[int, BalanceChange]:
    """Write one row per debit, with the balance after it; give the accounts that changed, as they must be written.

    `tails` are the ends of rows that were priced by steps, by place.
    """
    if tails:
        return _write_stepped_debits(driver, debits, tails, accounts)
    changed: dict[int, BalanceChange] = {}
    rows = [START]
    with driver.cursor() as cursor, cursor.copy(COPY_DEBITS) as copy:
        for first in range(0, len(debits), ROWS_AT_ONCE):
            for call in debits[first : first + ROWS_AT_ONCE]:
                if call.charge is None:
                    raise ValueError(f"call {call.event.call_id} of org {call.event.org_id} was not priced")
                account = changed[call.event.org_id] = accounts[call.event.org_id]
                account.balance_cents -= call.charge.amount_cents
                account.transaction_count += 1
                rows += (pack_posting(account.balance_cents, account.posted_us), call.row)
            if first + ROWS_AT_ONCE >= len(debits):
                rows.append(END)
            copy.write(b"".join(rows))  # seldom: each write is a turn of the thread's
            rows.clear()
    return changed


def _write_stepped_debits(
    driver: psycopg.Connection,
    debits: Sequence[PricedCall],
    tails: dict[int, bytes],
    accounts: dict[int, BalanceChange],
) -> dict[int, BalanceChange]:
    """The same where any has steps: every row is longer by two columns."""
    changed: dict[int, BalanceChange] = {}
    rows = [START]
    with driver.cursor() as cursor, cursor.copy(COPY_STEPPED_DEBITS) as copy:
        for place, call in enumerate(debits):
            if call.charge is None:
                raise ValueError(f"call {call.event.call_id} of org {call.event.org_id} was not priced")
            account = changed[call.event.org_id] = accounts[call.event.org_id]
            account.balance_cents -= call.charge.amount_cents
            account.transaction_count += 1
            rows += (
                pack_stepped_posting(account.balance_cents, account.posted_us),
                call.row,
                tails.get(place, NO_STEPS),
            )
            if len(rows) > 3 * ROWS_AT_ONCE:
                copy.write(b"".join(rows))
                rows.clear()
        rows.append(END)
        copy.write(b"".join(rows))
    return changed
