"""One call's story, from what is stored: its debit, re-pricings that cover it, events that name it and could not be billed."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from db.ledger.price_book import load_prices_of
from db.ledger.rejections import list_named
from db.ledger.repricings import CoveringRepricing, list_covering
from db.models import RejectedEvent, Transaction
from metering.rules.pricing import Price
from metering.rules.steps import unpack_steps

MAX_REJECTED: Final = 100


@dataclass(frozen=True, slots=True)
class CallStory:
    """What is known of a call. Nothing, where it is still in the stream, took 0 seconds, or never came."""

    debit: Transaction | None
    price: Price | None
    """The book's that counted, which says since when it was in force; None without a debit, or where the book says otherwise."""
    rejected: list[RejectedEvent]
    """Oldest first, at most so many."""
    repricings: list[CoveringRepricing]
    """Newest first: the call counts as billed at the first."""


def read_call_story(connection: Connection, org_id: int, call_id: int) -> CallStory:
    """The story of an org's call. By the key of calls, and by what rejected events name."""
    debit = Session(connection).scalar(
        select(Transaction).where(Transaction.org_id == org_id, Transaction.call_id == call_id)
    )
    rejected = list_named(connection, org_id, call_id=call_id, limit=MAX_REJECTED)
    repricings = [] if debit is None else list_covering(connection, debit)
    return CallStory(debit, _price_of(connection, debit), rejected[::-1], repricings)


def _price_of(connection: Connection, debit: Transaction | None) -> Price | None:
    """The price in force when the call started: the book's, as far as it is what the debit stores."""
    if debit is None or debit.tier is None or debit.ended_at is None or debit.duration_us is None:
        return None
    book = load_prices_of(connection, debit.tier, debit.org_id)
    price = book.price_of(debit.tier, debit.org_id, debit.ended_at, debit.duration_us)
    stored = (
        debit.rate_microusd_per_minute,
        debit.increment_first_s,
        debit.increment_next_s,
        debit.minimum_s,
        debit.connect_fee_microusd,
        unpack_steps(debit.steps or ()),
    )
    return price if price is not None and price.terms == stored else None
