"""An org's transactions in pages, newest first, with how many there are (docs/reference/http-api.md#transactions).

What a statement costs doesn't grow with the org's history, nor with how deep a page lies, but with how many of its transactions
are no debits, which are rare:

- id order is time order, so a time is an id (`first_transaction_since`), and no index by time is needed;
- the number of all transactions is in the account;
- every 10,000th transaction's place in the list is kept (db/ledger/transaction_marks.py): so a page is found, and what lies
  between two dates is counted, by walking over a part of one index that is never longer;
- what isn't a debit is rare and has an index of its own, and debits are what is left without it;
- where a page begins is found on an index alone, and only its rows are fetched;
- a call is found by its key.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    Select,
    Text,
    cast,
    func,
    literal,
    literal_column,
    select,
    text,
)

from db.ledger.transaction_marks import STEP, count_before, id_at, write_marks
from db.models import Account, Kind, Transaction
from db.postgres.engine import transaction

S = TypeVar("S", bound=Select[*tuple[Any, ...]])


TIMEOUT_MS: Final = 5_000
"""How long a statement of a list may take. None should come near: whoever asks for what does must not hold Postgres up."""
_LIMIT: Final = text(f"SET LOCAL statement_timeout = {TIMEOUT_MS}")
_TURNS: Final = 8


class ListedTransaction(NamedTuple):
    """A transaction as a customer sees it. `metadata_json` is the text that came with the call; None is the empty object."""

    id: int
    kind: str
    description: str
    amount_cents: int
    call_id: int | None
    tier: str | None
    direction: str | None
    duration_us: int | None
    ended_at: datetime | None
    phone_number_id: int | None
    phone_number_value: str | None
    metadata_json: str | None
    created_at: datetime


_COLUMNS: Final = (
    Transaction.id,
    Transaction.kind,
    Transaction.description,
    Transaction.amount_cents,
    Transaction.call_id,
    Transaction.tier,
    Transaction.direction,
    Transaction.duration_us,
    Transaction.ended_at,
    Transaction.phone_number_id,
    Transaction.phone_number_value,
    cast(Transaction.event_metadata, Text),
    Transaction.created_at,
)
_NEWEST_FIRST: Final = (Transaction.org_id.desc(), Transaction.id.desc())
# Spelt out: a plan that is made before the values are known must see that the index without debits will do.
_DEBIT: Final = Transaction.kind == literal_column("'debit'")
_NO_DEBIT: Final = Transaction.kind != literal_column("'debit'")


@dataclass(frozen=True, slots=True)
class TransactionPage:
    """A page, and how many transactions the list has in all, as of one moment."""

    results: list[ListedTransaction]
    total: int


@dataclass(frozen=True, slots=True)
class TransactionFilter:
    """Which transactions are listed. Times are aware: from `since` on, up to but without `until`."""

    kind: Kind | None = None
    since: datetime | None = None
    until: datetime | None = None
    call_id: int | None = None


@dataclass(frozen=True, slots=True)
class PageOfList:
    """Which part of a list: so many, past so many, of those with an id below `before_id`. The total is of the whole list."""

    limit: int
    offset: int = 0
    before_id: int | None = None


def list_transactions(
    engine: Engine, org_id: int, wanted: TransactionFilter, asked: PageOfList
) -> TransactionPage:
    """A page of an org's transactions; of an org that isn't there, an empty one."""
    if wanted.call_id is None and _needs_marks(wanted, asked.offset):
        write_marks(engine, org_id)
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with transaction(snapshot) as connection:
        connection.execute(_LIMIT)
        if wanted.call_id is not None:
            return _page_of_call(connection, org_id, wanted, asked)
        listing = _Listing(connection, org_id, wanted)
        total = listing.count()
        return TransactionPage(listing.page(asked) if asked.offset < total else [], total)


def _needs_marks(wanted: TransactionFilter, offset: int) -> bool:
    dated = wanted.since is not None or wanted.until is not None
    return dated or offset > STEP or (offset > 0 and wanted.kind is Kind.DEBIT)


def _page_of_call(
    connection: Connection, org_id: int, wanted: TransactionFilter, asked: PageOfList
) -> TransactionPage:
    """A call has one transaction at most. Whether the rest of the filter lets it through is asked of that one alone."""
    of_call = select(*_COLUMNS).where(Transaction.org_id == org_id, Transaction.call_id == wanted.call_id)
    listed = [
        row
        for row in map(ListedTransaction._make, connection.execute(of_call))
        if wanted.kind in {None, row.kind}
        and (wanted.since is None or row.created_at >= wanted.since)
        and (wanted.until is None or row.created_at < wanted.until)
    ]
    shown = [row for row in listed if asked.before_id is None or row.id < asked.before_id]
    return TransactionPage(shown[asked.offset : asked.offset + asked.limit], len(listed))


class _Listing:
    """One list, in one snapshot."""

    def __init__(self, connection: Connection, org_id: int, wanted: TransactionFilter) -> None:
        self._connection = connection
        self._org_id = org_id
        self._kind = wanted.kind
        self._since_id = self._first_since(wanted.since)
        self._until_id = self._first_since(wanted.until)

    def _first_since(self, at: datetime | None) -> int | None:
        """The id with which a list begins or before which it ends; None without one."""
        if at is None:
            return None
        arguments = literal(self._org_id, BigInteger), literal(at, DateTime(timezone=True))
        found = self._connection.scalar(select(func.first_transaction_since(*arguments)))
        return 0 if found is None else found  # an org without transactions: whatever it is, nothing is found

    def count(self) -> int:
        """How many the list has."""
        if self._kind is None:
            return self._count_all()
        if self._kind is Kind.DEBIT:
            return self._count_all() - self._count(*self._range(self._until_id), _NO_DEBIT)
        return self._count(*self._range(self._until_id), *self._of_kind())

    def _count_all(self) -> int:
        return max(self._position(self._until_id) - self._before(), 0)

    def _before(self) -> int:
        """How many there are before the list begins."""
        return 0 if self._since_id is None else count_before(self._connection, self._org_id, self._since_id)

    def _position(self, below_id: int | None) -> int:
        """How many there are with a lower id: the position of the last one of them."""
        if below_id is not None:
            return count_before(self._connection, self._org_id, below_id)
        of_account = select(Account.transaction_count).where(Account.org_id == self._org_id)
        return self._connection.scalar(of_account) or 0

    def _count(self, *conditions: ColumnElement[bool]) -> int:
        return self._connection.scalar(select(func.count()).select_from(Transaction).where(*conditions)) or 0

    def _range(self, below_id: int | None) -> list[ColumnElement[bool]]:
        """Of the org, from where the list begins up to that id."""
        conditions = [Transaction.org_id == self._org_id]
        if self._since_id is not None:
            conditions.append(Transaction.id >= self._since_id)
        if below_id is not None:
            conditions.append(Transaction.id < below_id)
        return conditions

    def page(self, asked: PageOfList) -> list[ListedTransaction]:
        """The part that was asked for, of a list that has more than `offset`."""
        ends = [each for each in (self._until_id, asked.before_id) if each is not None]
        below_id = min(ends) if ends else None
        conditions, left = self._range(below_id), asked.offset
        if self._kind is not None:
            conditions += self._of_kind() if self._kind is not Kind.DEBIT else (_DEBIT,)
        if asked.offset and self._kind in {None, Kind.DEBIT}:
            first, left = self._find(below_id, asked.offset)
            if first is None:
                return []
            conditions.append(Transaction.id <= first)
        rows = self._connection.execute(
            _newest(select(*_COLUMNS), conditions).offset(left).limit(asked.limit)
        )
        return [ListedTransaction._make(row) for row in rows]

    def _find(self, below_id: int | None, offset: int) -> tuple[int | None, int]:
        """Where a page begins, and how many debits are still to be passed over from there; None past the list's end.

        For debits everything is counted first, and then what was no debit made up for, until there was none in the last part.
        """
        passed = 0
        for _ in range(_TURNS):
            first = self._id_at(below_id, offset + passed)
            if first is None or self._kind is None:
                return first, 0
            no_debits = self._count(*self._range(below_id), _NO_DEBIT, Transaction.id > first)
            if no_debits == passed:
                return first, 0
            found, passed = passed, no_debits
        return first, passed - found

    def _id_at(self, below_id: int | None, offset: int) -> int | None:
        """The id past so many of whatever kind, counted from the newest."""
        if offset <= STEP:
            # On the index alone, because nothing but the id is asked for.
            newest = _newest(select(Transaction.id), self._range(below_id))
            return self._connection.scalar(newest.offset(offset).limit(1))
        position = self._position(below_id) - offset
        return id_at(self._connection, self._org_id, position) if position > self._before() else None

    def _of_kind(self) -> tuple[ColumnElement[bool], ...]:
        """The one kind, and that it is no debit: so that the index without debits will do."""
        return (Transaction.kind == self._kind, _NO_DEBIT)


def _newest(statement: S, conditions: list[ColumnElement[bool]]) -> S:
    return statement.where(*conditions).order_by(*_NEWEST_FIRST)
