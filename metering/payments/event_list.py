"""Reading Stripe's list of events: a webhook that was lost is only late."""

from datetime import datetime, timedelta
from typing import Final

import structlog

from db.payments.stripe_events import advance_event_list, claim_event_list, known_events
from db.postgres.failures import Failure, diagnose
from metering.payments.context import Payments
from metering.payments.events import HANDLED, handle, read_event
from metering.payments.stripe_api import StripeEventSeen
from metering.payments.stripe_failures import StripeFailure
from metering.runtime.crashpoints import CrashPoint, reach

EVERY: Final = timedelta(seconds=30)
"""How often the list is read, by whichever process comes first."""
OVERLAP: Final = timedelta(minutes=10)
"""How far behind what was read the next reading begins: an event may turn up in the list later than younger ones."""
KEPT_FOR: Final = timedelta(days=30)
"""How long Stripe keeps events."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def read_events(payments: Payments, *, every: timedelta = EVERY) -> int | None:
    """Handle what stands in the list and hasn't been; give the number, None if it isn't time.

    Oldest first. One that can't be handled doesn't hold up those after it, but is come back to at each reading. Raises
    StripeFailure where the list can't be read, and what Postgres raises.
    """
    now = payments.clock()
    position = claim_event_list(payments.engine, now, every=every)
    if position is None:
        return None
    since = max(position - OVERLAP, now - KEPT_FOR)
    seen = sorted(
        payments.stripe.events_since(since, HANDLED), key=lambda event: (event.created_at, event.id)
    )
    new = _unknown(payments, seen)
    handled = 0
    failed_at: datetime | None = None
    for event in new:
        if _handled(payments, event):
            handled += 1
        elif failed_at is None:
            failed_at = event.created_at
    reach(CrashPoint.EVENTS_BEFORE_ADVANCE)
    # Never past the time of reading: what was made meanwhile may not have been in the list yet.
    advance_event_list(payments.engine, failed_at or min(now, seen[-1].created_at if seen else now))
    if handled:
        log.info("events were found that no webhook had brought", events=handled)
    return handled


def _unknown(payments: Payments, seen: list[StripeEventSeen]) -> list[StripeEventSeen]:
    known = known_events(payments.engine, [event.id for event in seen]) if seen else set()
    return [event for event in seen if event.id not in known]


def _handled(payments: Payments, event: StripeEventSeen) -> bool:
    try:
        handle(payments, read_event(event.id, event.type, event.created_at, event.livemode, event.data))
    except StripeFailure as failure:
        log.warning("an event has to wait", stripe_event=event.id, type=event.type, code=failure.code)
        return False
    except Exception as error:
        if diagnose(error) is Failure.OUTAGE:
            raise
        log.exception("an event can't be handled", stripe_event=event.id, type=event.type)
        return False
    return True
