"""Holding money for calls that are to start or to go on: priced, as much as is there, each once (docs/reference/holds.md)."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

import msgspec

from db.ledger.balances import read_balances
from metering.api.context import ApiContext
from metering.api.errors import InvalidField, InvalidRequestError, NotFoundError
from metering.rules.hold_terms import FirstAnswer, HoldTerms, decode_terms, held_prices
from metering.rules.holds import (
    MARGIN_S,
    STARTS_WITHIN,
    at_dearest,
    first_increment_cents,
    hold_cents,
    longest_covered_s,
)
from metering.rules.pricing import Price, PriceBook
from metering.signals.gates import Gates
from metering.signals.holds import Hold, HoldAnswer, HoldOutcome

TURNS: Final = 3
"""How often as much as is there is asked for, while others take some of it; then one first increment."""


@dataclass(frozen=True, slots=True)
class AskedHold:
    """What telephony asks for."""

    org_id: int
    call_id: int
    tier: str
    direction: str
    seconds: int
    """How long the call may last, in all."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Money is held."""

    max_duration_s: int
    held_cents: int
    available_cents: int
    expires_ms: int
    """By Redis's clock."""
    final: bool = False
    """The money ends there: no longer call is covered."""


@dataclass(frozen=True, slots=True)
class NotGranted:
    """Nothing is held by this."""

    outcome: HoldOutcome


async def start(context: ApiContext, asked: AskedHold) -> Granted | NotGranted:
    """Hold money for a call that wants to start: what was asked for, or as much as is there.

    One that is held already gets the answer that it got first. Raises NotFoundError for an org or tier that isn't there, and what
    Redis and Postgres raise.
    """
    version, now = await context.price_versions.newest()
    book = await _book(context, version, now)
    prices = _prices(book, asked, now, now + STARTS_WITHIN)
    answer, seconds = await _start(context, asked, prices)
    if answer.outcome is HoldOutcome.EXHAUSTED and await _gate_was_missing(context, asked.org_id):
        answer, seconds = await _start(context, asked, prices)
    if answer.outcome is not HoldOutcome.GRANTED or answer.hold is None:
        return _not_granted(context, asked, answer, prices)
    hold = answer.hold
    if answer.is_new:
        return Granted(seconds, hold.cents, answer.available_cents, hold.ends_ms)
    terms = decode_terms(hold.terms)
    if terms is None:  # held by telephony itself before
        longest = longest_covered_s(hold.cents, prices)
        if longest == 0:  # less than one first increment: let in, it would be cut at once
            return NotGranted(HoldOutcome.INSUFFICIENT)
        return Granted(longest, hold.cents, answer.available_cents, hold.ends_ms)
    first = terms.first or _first_answer(hold, terms)
    return Granted(first.max_duration_s, first.held_cents, first.available_cents, first.expires_ms)


async def _start(context: ApiContext, asked: AskedHold, prices: list[Price]) -> tuple[HoldAnswer, int]:
    """What came of it, and for how long money was asked for last."""
    seconds = asked.seconds
    for turn in range(TURNS + 1):
        terms = HoldTerms(asked.tier, asked.direction, seconds, held_prices(prices)).encode()
        cents = hold_cents(seconds, prices)
        answer = await context.holds.start(asked.org_id, asked.call_id, cents, seconds + MARGIN_S, terms)
        if answer.outcome is not HoldOutcome.INSUFFICIENT:
            break
        covered = hold_cents(1, prices) if turn == TURNS - 1 else answer.available_cents
        covered = longest_covered_s(min(covered, answer.available_cents), prices)
        if covered == 0 or covered >= seconds:
            break
        seconds = covered
    return answer, seconds


async def renew(
    context: ApiContext, asked: AskedHold, started_at: datetime, now: datetime
) -> Granted | NotGranted:
    """Hold money for a call that runs: `asked.seconds` in all since `started_at`, or as much as is there.

    Priced as it was at its start, or, where Redis knows nothing of it any more, as it may have been. Raises what `start` raises,
    and InvalidRequestError for another tier than the call is held with.
    """
    hold = await context.holds.find(asked.org_id, asked.call_id)
    terms = None if hold is None else decode_terms(hold.terms)
    if terms is not None:
        if terms.tier != asked.tier:
            raise InvalidRequestError(InvalidField("tier", f"must be that of the call's start: {terms.tier}"))
        prices = terms.priced()
    else:
        version, at = await context.price_versions.newest()
        book = await _book(context, version, at)
        prices = _prices(book, asked, started_at - STARTS_WITHIN, started_at + STARTS_WITHIN)
    answer, seconds = await _renew(context, asked, prices, hold, terms, (started_at, now))
    short = answer.outcome is HoldOutcome.EXHAUSTED or seconds < asked.seconds
    if short and await _gate_was_missing(context, asked.org_id):
        answer, seconds = await _renew(context, asked, prices, hold, terms, (started_at, now))
    if answer.outcome is not HoldOutcome.GRANTED or answer.hold is None:
        return _not_granted(context, asked, answer, prices)
    held = answer.hold
    # Longer than was asked for where a longer renewal came before this one: who was told so may rely on it.
    kept = decode_terms(held.terms)
    seconds = longest_covered_s(held.cents, prices) if kept is None else kept.max_duration_s
    # What another call holds may come free again: it is final as things stand.
    final = longest_covered_s(held.cents + max(answer.available_cents, 0), prices) <= seconds
    return Granted(seconds, held.cents, answer.available_cents, held.ends_ms, final)


def _not_granted(
    context: ApiContext, asked: AskedHold, answer: HoldAnswer, prices: list[Price]
) -> NotGranted:
    if answer.outcome is HoldOutcome.INSUFFICIENT:
        context.refusal_notes.record(asked.org_id, first_increment_cents(prices))
    return NotGranted(answer.outcome)


async def _renew(
    context: ApiContext,
    asked: AskedHold,
    prices: list[Price],
    hold: Hold | None,
    terms: HoldTerms | None,
    started_and_now: tuple[datetime, datetime],
) -> tuple[HoldAnswer, int]:
    """What came of it, and for how long in all money was asked for last."""
    seconds = asked.seconds
    for turn in range(TURNS + 1):
        kept = (
            HoldTerms(asked.tier, asked.direction, seconds, held_prices(prices))
            if terms is None or hold is None
            else msgspec.structs.replace(
                terms, max_duration_s=seconds, first=terms.first or _first_answer(hold, terms)
            )
        )
        answer = await context.holds.extend(
            asked.org_id,
            asked.call_id,
            hold_cents(seconds, prices),
            _ttl_s(seconds, hold, *started_and_now),
            kept.encode(),
        )
        if answer.outcome is not HoldOutcome.INSUFFICIENT:
            break
        # What is held already stays, whatever is there besides: the last turn asks for no more than that.
        held_cents = 0 if answer.hold is None else answer.hold.cents
        covered = held_cents + max(answer.available_cents, 0)
        if turn == TURNS - 1:
            covered = min(covered, max(held_cents, hold_cents(1, prices)))
        longest = longest_covered_s(covered, prices)
        if longest == 0 or longest >= seconds:
            break
        seconds = longest
    return answer, seconds


def _ttl_s(seconds: int, hold: Hold | None, started_at: datetime, now: datetime) -> int:
    """How long from now a hold lasts for a call that may last for `seconds` since its start: never before it was first held."""
    started_s = started_at.timestamp()
    if hold is not None:
        started_s = max(started_s, hold.since_ms / 1_000)
    ran_s = max(int(now.timestamp() - started_s), 0)
    return max(seconds + MARGIN_S - ran_s, 1)


def _first_answer(hold: Hold, terms: HoldTerms) -> FirstAnswer:
    return FirstAnswer(terms.max_duration_s, hold.cents, hold.available_cents, hold.ends_ms)


def _prices(book: PriceBook, asked: AskedHold, first: datetime, last: datetime) -> list[Price]:
    """Every price that may be the one of a call that starts from `first` to `last`. Raises NotFoundError."""
    prices = book.in_force_between(asked.tier, asked.org_id, first, last)
    if not prices:
        raise NotFoundError("there is no such tier")
    return [at_dearest(price) for price in prices]


async def _book(context: ApiContext, version: int, now: datetime) -> PriceBook:
    """The price book, of that version or later."""
    held = context.prices.as_of(version)
    if held is not None:
        return held
    return await context.thread_pools.gate.run(partial(context.prices.read, context.engine, now))


async def _gate_was_missing(context: ApiContext, org_id: int) -> bool:
    """Whether Redis had no gate of the org, so that there is one now: it was emptied, and nobody has made it yet.

    Raises NotFoundError for an org that isn't there.
    """
    if await context.gate_reader.read(org_id) is not None:
        return False
    await context.thread_pools.gate.run(partial(_make_gate, context, org_id))
    return True


def _make_gate(context: ApiContext, org_id: int) -> None:
    balances = read_balances(context.engine, [org_id])
    if not balances:
        raise NotFoundError("there is no such org")
    Gates(context.stream).follow(balances, context.payments.clock())
