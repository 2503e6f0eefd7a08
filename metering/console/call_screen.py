"""What `metering call` shows."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from db.ledger.call_story import CallStory
from db.ledger.repricings import terms_of
from db.ledger.transaction_list import ListedTransaction
from db.models import RejectedEvent, Transaction
from metering.console.output import show_fields
from metering.console.repricing_screen import terms_json
from metering.rules.money import format_microusd, format_usd
from metering.rules.repricing import describe_price
from metering.rules.steps import format_steps, unpack_steps
from metering.rules.times import format_time

_US_PER_S: Final = 1_000_000


def unknown_call(org_id: int, call_id: int) -> str:
    """What is said of a call of which nothing is stored."""
    return (
        f"Nothing is stored of call {call_id} of org {org_id}: it was never pushed, took 0 seconds, which costs nothing, or still"
        " waits in the stream (`metering status` shows the backlog)."
    )


def pushed_at(stream_id: str | None) -> datetime | None:
    """When Redis took a stream entry, by its own clock: its id says so. None for an id that isn't Redis's own."""
    milliseconds = (stream_id or "").partition("-")[0]
    if not milliseconds.isdecimal() or len(milliseconds) > 14:  # noqa: PLR2004 - to the year 5138
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(milliseconds))


def story_json(org_id: int, call_id: int, story: CallStory) -> dict[str, Any]:
    """For programs: amounts in cents, rates as text, because a JSON number may become a float."""
    return {
        "org_id": org_id,
        "call_id": call_id,
        "debit": None if story.debit is None else _debit_json(story.debit),
        "price_in_force_from": None if story.price is None else story.price.in_force_from,
        "price_is_the_book_s": story.price is not None,
        "price_is_own": story.price is not None and story.price.org_id is not None,
        "repricings": [
            {
                "key": each.repricing.key,
                "reason": each.repricing.reason,
                "at": each.seen_to_at,
                "terms": terms_json(terms_of(each.repricing)),
                "amount_cents": -each.amount_cents,
            }
            for each in story.repricings
        ],
        "rejected": [_rejected_json(event) for event in story.rejected],
    }


def _debit_json(debit: Transaction) -> dict[str, Any]:
    return {
        "transaction_id": debit.id,
        "amount_cents": debit.amount_cents,
        "balance_after_cents": debit.balance_after_cents,
        "created_at": debit.created_at,
        "description": debit.description,
        "stream_id": debit.stream_id,
        "pushed_at": pushed_at(debit.stream_id),
        "tier": debit.tier,
        "direction": debit.direction,
        "duration_seconds": _seconds(debit.duration_us),
        "started_at": _started_at(debit),
        "ended_at": debit.ended_at,
        "phone_number_id": debit.phone_number_id,
        "phone_number_value": debit.phone_number_value,
        "metadata": debit.event_metadata or {},
        "billable_seconds": debit.billable_seconds,
        "usd_per_minute": None if debit.steps else format_microusd(debit.rate_microusd_per_minute or 0),
        "steps": format_steps(unpack_steps(debit.steps)) if debit.steps else None,
        "used_before_seconds": debit.used_before_s,
        "increment": f"{debit.increment_first_s}/{debit.increment_next_s}",
        "minimum_seconds": debit.minimum_s,
        "connect_fee_usd": format_microusd(debit.connect_fee_microusd or 0),
    }


def _rejected_json(event: RejectedEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "stream_id": event.stream_id,
        "pushed_at": pushed_at(event.stream_id),
        "received_at": event.received_at,
        "reason": event.reason,
        "detail": event.detail,
        "replayed_at": event.replayed_at,
        "replayed_as": event.replayed_as,
        "dismissed_at": event.dismissed_at,
        "dismissed_reason": event.dismissed_reason,
    }


def listed_json(row: ListedTransaction) -> dict[str, Any]:
    """A billed call of a list, for programs."""
    return {
        "transaction_id": row.id,
        "call_id": row.call_id,
        "amount_cents": row.amount_cents,
        "created_at": row.created_at,
        "description": row.description,
        "tier": row.tier,
        "direction": row.direction,
        "duration_seconds": _seconds(row.duration_us),
        "ended_at": row.ended_at,
        "phone_number_value": row.phone_number_value,
    }


def show_story(org_id: int, call_id: int, story: CallStory) -> None:
    """For people, in the order in which it happened."""
    for event in story.rejected:
        show_fields(f"Call {call_id} of org {org_id}: rejected event {event.id}", _rejected_fields(event))
    if story.debit is not None:
        show_fields(f"Call {call_id} of org {org_id}: billed", _debit_fields(story.debit, story))


def _rejected_fields(event: RejectedEvent) -> Iterator[tuple[str, object]]:
    yield "pushed", _pushed(event.stream_id)
    yield "rejected", f"{format_time(event.received_at)}, {event.reason}"
    yield "why", event.detail
    if event.replayed_at is not None:
        yield "replayed", f"{format_time(event.replayed_at)}, as entry {event.replayed_as}"
    elif event.dismissed_at is not None:
        yield "dismissed", f"{format_time(event.dismissed_at)}: {event.dismissed_reason}"
    else:
        yield (
            "waits",
            f"mend the cause, then `metering rejected replay {event.id}`, or `rejected dismiss {event.id}`",
        )


def _debit_fields(debit: Transaction, story: CallStory) -> Iterator[tuple[str, object]]:
    yield "started", _started_at(debit)
    yield "ended", f"{_time(debit.ended_at)}, after {_seconds(debit.duration_us)} s, {debit.direction}"
    if debit.phone_number_value is not None or debit.phone_number_id is not None:
        yield "phone number", f"{debit.phone_number_value or '-'} (id {debit.phone_number_id or '-'})"
    yield "pushed", _pushed(debit.stream_id)
    yield "posted", f"{format_time(debit.created_at)}, transaction {debit.id}"
    since = "not as the price book has it now"
    if story.price is not None:
        start = story.price.in_force_from
        since = "in force since ever" if start is None else f"in force from {format_time(start)}"
        since += "" if story.price.org_id is None else ", the org's own"
    extras = "".join(
        (
            f", at least {debit.minimum_s} s" if debit.minimum_s else "",
            f", ${format_microusd(debit.connect_fee_microusd)} per call"
            if debit.connect_fee_microusd
            else "",
        )
    )
    rate = f"${format_microusd(debit.rate_microusd_per_minute or 0)}"
    if debit.steps:
        rate = f"by steps {' '.join(format_steps(unpack_steps(debit.steps)))}"
    yield (
        "price",
        (
            f"{debit.tier}: {rate} per minute, increments of"
            f" {debit.increment_first_s}/{debit.increment_next_s} s{extras}; {since}"
        ),
    )
    if debit.used_before_s is not None:
        yield "used before", f"{debit.used_before_s} s of the tier in the month"
    yield "billed", f"{debit.billable_seconds} s: {debit.description}"
    yield "debit", f"{format_usd(debit.amount_cents)} USD"
    yield "balance after", f"{format_usd(debit.balance_after_cents)} USD"
    for each in story.repricings:
        yield (
            "re-priced",
            (
                f"{format_time(each.seen_to_at)}, {each.repricing.key}: {format_usd(-each.amount_cents)} USD at"
                f" {describe_price(terms_of(each.repricing))}; {each.repricing.reason}"
            ),
        )
    if debit.event_metadata:
        yield "metadata", debit.event_metadata


def _pushed(stream_id: str | None) -> str:
    at = pushed_at(stream_id)
    return f"entry {stream_id}" if at is None else f"{format_time(at)}, entry {stream_id}"


def _time(at: datetime | None) -> str:
    return "-" if at is None else format_time(at)


def _started_at(debit: Transaction) -> datetime | None:
    if debit.ended_at is None or debit.duration_us is None:
        return None
    return debit.ended_at - timedelta(microseconds=debit.duration_us)


def _seconds(duration_us: int | None) -> int | float | None:
    """Whole seconds without a point."""
    if duration_us is None:
        return None
    exact = Decimal(duration_us) / _US_PER_S
    return int(exact) if exact == int(exact) else float(exact)
