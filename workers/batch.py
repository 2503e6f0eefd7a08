"""A batch on its way from the stream to the ledger: stream entries, parsed once, priced with the price book of the moment."""

from collections.abc import Sequence

import msgspec

from db.ledger.post_calls import PricedCall, price_call
from db.ledger.rejections import RejectedEntry
from metering.rules.events import MAX_EVENT_BYTES, CallEvent, parse_event
from metering.rules.pricing import PriceBook
from metering.rules.rejections import Reason, Rejection
from workers.stream import Entry


class ParsedEntry(msgspec.Struct, frozen=True, gc=False):
    """A stream entry and what it says, or why it can't be billed."""

    stream_id: str
    raw: bytes
    event: CallEvent | Rejection

    def unprocessable(self, why: str) -> "ParsedEntry":
        """The same entry, given up."""
        return ParsedEntry(self.stream_id, self.raw, Rejection(Reason.UNPROCESSABLE, why))


class PricedBatch(msgspec.Struct, frozen=True):
    """Calls ready to be posted, and what isn't a call, as one version of the price book has it."""

    calls: list[PricedCall]
    rejected: list[RejectedEntry]
    book_version: int

    def followed_by(self, later: "PricedBatch") -> "PricedBatch | None":
        """Both as one, None if of different price books. Takes in `later`: this one must not be used any more."""
        if self.book_version != later.book_version:
            return None
        self.calls.extend(later.calls)
        self.rejected.extend(later.rejected)
        return self


def parse_entries(entries: Sequence[Entry]) -> list[ParsedEntry]:
    """Parse each entry; never raises, whatever the entries hold."""
    return [
        ParsedEntry(
            entry.stream_id,
            entry.raw,
            parse_event(entry.raw) if entry.events == 1 else _not_one_event(entry),
        )
        for entry in entries
    ]


def _not_one_event(entry: Entry) -> Rejection:
    """Why an entry without an event, or with several, can't be billed."""
    if len(entry.raw) > MAX_EVENT_BYTES:  # else all of it would be kept, be it a gigabyte
        return Rejection(
            Reason.TOO_LARGE,
            f"{len(entry.raw)} bytes and not one field `event`; at most {MAX_EVENT_BYTES} are allowed",
        )
    return Rejection(
        Reason.INVALID_FIELD,
        f"event: the stream entry has {entry.events} fields of this name; XADD each call as an entry with one",
    )


def price_entries(parsed: Sequence[ParsedEntry], book: PriceBook) -> PricedBatch:
    """Price each call with the price in force when it started; set aside what isn't a call.

    See docs/reference/money-rules.md#which-price-counts.
    """
    has_steps = book.has_steps
    calls: list[PricedCall] = []
    rejected: list[RejectedEntry] = []
    for entry in parsed:
        event = entry.event
        if isinstance(event, Rejection):
            rejected.append(RejectedEntry(entry.stream_id, entry.raw, event))
            continue
        price = book.price_of(event.tier, event.org_id, event.ended_at, event.duration_us)
        if has_steps and book.counts_usage(event.tier, event.org_id):
            calls.append(price_call(entry.stream_id, entry.raw, event, price, usage_counted=True))
        else:
            calls.append(price_call(entry.stream_id, entry.raw, event, price))
    return PricedBatch(calls, rejected, book.version)
