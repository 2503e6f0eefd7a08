"""An org's transactions in pages, newest first, with how many there are (CONTRACT.md section 5).

No statement reads more rows than it shows, but for debits beside what isn't one; the rest is walking over index entries, of those
before a page and of those in a range that is counted:

- id order is time order, so a time is an id (`first_transaction_since`), and no index by time is needed;
- the number of all transactions is in the account;
- what isn't a debit is rare and has an index of its own, and debits are what is left without it;
- where a page begins is found on an index alone, and only its rows are fetched.
"""

from collections.abc import Iterator
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
)

from db.engine import transaction
from db.models import Account, Kind, Transaction

S = TypeVar("S", bound=Select[*tuple[Any, ...]])


class ListedTransaction(NamedTuple):
    """A transaction as a customer sees it. `metadata_json` is the text that came with the call; None is the empty object."""

    id: int
    kind: str
    description: str
    amount_cents: int
    call_id: int | None
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


def list_transactions(
    engine: Engine, org_id: int, wanted: TransactionFilter, *, limit: int, offset: int
) -> TransactionPage:
    """A page of an org's transactions; of an org that isn't there, an empty one."""
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with transaction(snapshot) as connection:
        listing = _Listing(connection, org_id, wanted)
        total = listing.count()
        return TransactionPage(listing.page(limit, offset) if offset < total else [], total)


class _Listing:
    """One list, in one snapshot."""

    def __init__(self, connection: Connection, org_id: int, wanted: TransactionFilter) -> None:
        self._connection = connection
        self._org_id = org_id
        self._wanted = wanted
        self._range = [Transaction.org_id == org_id, *self._bounds()]

    def _bounds(self) -> Iterator[ColumnElement[bool]]:
        """The ids between which the list lies; NULL, which lets nothing through, for an org without transactions."""
        if self._wanted.since is not None:
            yield Transaction.id >= self._first_since(self._wanted.since)
        if self._wanted.until is not None:
            yield Transaction.id < self._first_since(self._wanted.until)

    def _first_since(self, at: datetime) -> ColumnElement[int | None]:
        arguments = literal(self._org_id, BigInteger), literal(at, DateTime(timezone=True))
        found = self._connection.scalar(select(func.first_transaction_since(*arguments)))
        return literal(found, BigInteger)

    def count(self) -> int:
        if self._wanted.kind is None:
            return self._count_all()
        if self._wanted.kind is Kind.DEBIT:
            return self._count_all() - self._count(*self._range, _NO_DEBIT)
        return self._count(*self._range, *self._of_kind())

    def _count_all(self) -> int:
        if self._wanted.since is None and self._wanted.until is None:
            of_account = select(Account.transaction_count).where(Account.org_id == self._org_id)
            return self._connection.scalar(of_account) or 0
        return self._count(*self._range)

    def _count(self, *conditions: ColumnElement[bool]) -> int:
        return self._connection.scalar(select(func.count()).select_from(Transaction).where(*conditions)) or 0

    def page(self, limit: int, offset: int) -> list[ListedTransaction]:
        conditions, left = list(self._range), 0
        if self._wanted.kind is not None and self._wanted.kind is not Kind.DEBIT:
            conditions += self._of_kind()
        if offset:
            # On the index alone, because nothing but the id is asked for.
            first = self._connection.scalar(
                _newest(select(Transaction.id), conditions).offset(offset).limit(1)
            )
            if self._wanted.kind is Kind.DEBIT:
                # It was counted past what isn't a debit too: as many debits are still to be passed over.
                left = self._count(*self._range, _NO_DEBIT, Transaction.id > first)
            conditions.append(Transaction.id <= first)
        if self._wanted.kind is Kind.DEBIT:
            conditions.append(_DEBIT)
        rows = self._connection.execute(_newest(select(*_COLUMNS), conditions).offset(left).limit(limit))
        return [ListedTransaction._make(row) for row in rows]

    def _of_kind(self) -> tuple[ColumnElement[bool], ...]:
        """The one kind, and that it is no debit: so that the index without debits will do."""
        return (Transaction.kind == self._wanted.kind, _NO_DEBIT)


def _newest(statement: S, conditions: list[ColumnElement[bool]]) -> S:
    return statement.where(*conditions).order_by(*_NEWEST_FIRST)
