"""Reading Stripe's list of events: a webhook that was lost is only late."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from db.operators.log import Actor, log_action
from db.payments.set_aside_events import (
    KeptEvent,
    forget_set_aside,
    note_error,
    read_set_aside,
    set_aside,
    set_aside_among,
    take_due,
)
from db.payments.stripe_events import claim_event_list, event_list_age, finish_event_list, known_events
from db.postgres.clock import ask_clock
from db.postgres.engine import transaction
from db.postgres.failures import is_away
from metering.payments.context import Payments
from metering.payments.events import HANDLED, Source, handle, read_event
from metering.payments.metrics import EVENT_LIST_AGE_SECONDS, STRIPE_EVENTS
from metering.payments.stripe_api import StripeEventSeen
from metering.payments.stripe_failures import StripeFailure
from metering.runtime.clock import age_s
from metering.runtime.crashpoints import CrashPoint, reach

EVERY: Final = timedelta(seconds=30)
"""How often the list is read, by whichever process comes first."""
OVERLAP: Final = timedelta(minutes=10)
"""How far behind what was read the next reading begins: an event may turn up in the list later than younger ones."""
SINCE_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Stripe gives what it has: events of the last 30 days."""

MAX_ERROR_CHARS: Final = 500
SET_ASIDE: Final = "set_aside"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def read_events(payments: Payments, *, every: timedelta = EVERY) -> int | None:
    """Handle what stands in the list and hasn't been; give the number, None if it isn't time.

    Oldest first. One that can't be handled is set aside: it holds up neither those after it nor the list, and is tried again, at
    growing intervals of up to an hour, until it can. Raises StripeFailure where the list can't be read, and what Postgres raises.
    """
    position = claim_event_list(payments.engine, every=every)
    if position is None:
        return None
    listed = payments.stripe.events_since(position - OVERLAP, HANDLED)
    wrong = None
    if position > (listed.at or ask_clock(payments.engine)) + OVERLAP:
        # Nobody can have seen to what is yet to come: whoever wrote that had a clock that was wrong. What he skipped isn't known.
        log.error(
            "the event list was read up to a time to come; all of it is read again", position=str(position)
        )
        wrong = position
        listed = payments.stripe.events_since(SINCE_EVER, HANDLED)
    seen = sorted(listed.events, key=lambda event: (event.created_at, event.id))
    new = _unknown(payments, seen)
    now = ask_clock(payments.engine)
    handled = _retry_set_aside(payments, now)
    for event in new:
        error = _try_to_handle(payments, event)
        if error is None:
            handled += 1
        else:
            set_aside(
                payments.engine, event.ref, livemode=event.livemode, data=event.data, error=error, now=now
            )
            STRIPE_EVENTS.labels(Source.LIST.value, SET_ASIDE).inc()
    reach(CrashPoint.EVENTS_BEFORE_ADVANCE)
    # Not past the newest: what was made meanwhile may not have been in the list yet. All by Stripe's clock.
    seen_to = seen[-1].created_at if seen else listed.at
    finish_event_list(payments.engine, seen_to, wrong=wrong)
    if handled:
        log.info("events were found that no webhook had brought", events=handled)
    return handled


def follow_event_list(payments: Payments) -> None:
    """Read the list if it is time, and in any case tell how long ago it was last read, by whichever process."""
    try:
        read_events(payments)
    finally:
        age = event_list_age(payments.engine)
        if age is not None:
            EVENT_LIST_AGE_SECONDS.set_function(partial(age_s, age, time.monotonic()))


def _unknown(payments: Payments, seen: list[StripeEventSeen]) -> list[StripeEventSeen]:
    """Those that have had no effect yet, and aren't set aside."""
    ids = [event.id for event in seen]
    known = known_events(payments.engine, ids) | set_aside_among(payments.engine, ids) if seen else set()
    return [event for event in seen if event.id not in known]


def _retry_set_aside(payments: Payments, now: datetime) -> int:
    """Try those again that were set aside, as their time has come; give how many could be handled."""
    handled = 0
    for event in take_due(payments.engine, now):
        error = _try_to_handle(payments, event)
        if error is None:
            forget_set_aside(payments.engine, event.ref.id)
            handled += 1
        else:
            note_error(payments.engine, event.ref.id, error)
    return handled


def retry_now(payments: Payments, event_id: str | None, actor: Actor) -> dict[str, str | None]:
    """Try those again that are set aside, or one of them, for an operator; give why each can't be handled, None where it was.

    Raises what Postgres raises.
    """
    tried: dict[str, str | None] = {}
    for event in read_set_aside(payments.engine, event_id):
        error = tried[event.ref.id] = _try_to_handle(payments, event)
        with transaction(payments.engine) as connection:
            log_action(
                connection, actor, "stripe-event retry", subject=event.ref.id, details={"error": error}
            )
        if error is None:
            forget_set_aside(payments.engine, event.ref.id)
        else:
            note_error(payments.engine, event.ref.id, error)
    return tried


def _try_to_handle(payments: Payments, event: StripeEventSeen | KeptEvent) -> str | None:
    """Handle an event; give why that isn't possible now, in words. Raises what Postgres raises where it is away."""
    ref = event.ref
    try:
        read = read_event(ref.id, ref.type, ref.created_at, event.livemode, event.data)
        handle(payments, read, source=Source.LIST)
    except StripeFailure as failure:
        log.warning(
            "an event of Stripe's is set aside", stripe_event=ref.id, type=ref.type, code=failure.code
        )
        return str(failure)[:MAX_ERROR_CHARS]
    except Exception as error:
        if is_away(error):
            raise
        log.exception("an event of Stripe's is set aside", stripe_event=ref.id, type=ref.type)
        return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]
    return None
