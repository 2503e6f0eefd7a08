"""What each kind of Stripe's events asks for, whether it came as a webhook or was found in the list."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import structlog

from db.accounts.billing import (
    find_org_of_payment_method,
    lock_billing,
    note_detached,
    note_ready,
    note_updated,
)
from db.attempts.reload_rule import Reloads
from db.payments.stripe_customers import find_org_of_customer
from db.payments.stripe_events import EventRef, is_event_known, keep_event
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.payments.lookup import look_up_intent
from metering.payments.metrics import STRIPE_EVENTS
from metering.payments.parsing import read_intent
from metering.payments.settling import follow, settle_and_follow
from metering.payments.stripe_failures import RESOURCE_MISSING, StripeRefused
from metering.rules.payments import IntentSeen

INTENT_SUCCEEDED: Final = "payment_intent.succeeded"
SETUP_SUCCEEDED: Final = "setup_intent.succeeded"
METHOD_DETACHED: Final = "payment_method.detached"
METHOD_UPDATED: Final = frozenset({"payment_method.automatically_updated", "payment_method.updated"})
"""Stripe has heard from the card's network of its new number or expiry, or somebody has entered it."""

# They only say that there is something to look at: an event can be old, and refunds and disputes are told in many kinds.
LOOKUP_EVENTS: Final = frozenset(
    {
        *("payment_intent.payment_failed", "payment_intent.canceled", "payment_intent.processing"),
        *("payment_intent.requires_action", "charge.refunded", "charge.refund.updated"),
        *("refund.created", "refund.updated", "refund.failed"),
        *("charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed"),
        *("charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated"),
    }
)
HANDLED: Final = (
    *(INTENT_SUCCEEDED, SETUP_SUCCEEDED, METHOD_DETACHED),
    *sorted(METHOD_UPDATED),
    *sorted(LOOKUP_EVENTS),
)
"""The types of events that ask for anything. Stripe lists up to 20 types at a time."""

KNOWN: Final = "known"
IGNORED: Final = "ignored"
WRONG_LIVEMODE: Final = "wrong_livemode"
UNKNOWN_CUSTOMER: Final = "unknown_customer"
UNKNOWN_OBJECT: Final = "unknown_object"


class Source(StrEnum):
    """How an event came."""

    WEBHOOK = "webhook"
    LIST = "list"
    """Stripe's list of events: no webhook had brought it by then."""


log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Event:
    """An event of Stripe's. `thing` is its object as it was then, `previous` what had changed."""

    ref: EventRef
    livemode: bool
    thing: Mapping[str, Any]
    previous: Mapping[str, Any]


def read_event(id_: str, type_: str, created_at: datetime, livemode: bool, data: Mapping[str, Any]) -> Event:
    """An event from its parts."""
    thing, previous = data.get("object"), data.get("previous_attributes")
    return Event(
        EventRef(id_, type_, created_at),
        livemode,
        thing if isinstance(thing, Mapping) else {},
        previous if isinstance(previous, Mapping) else {},
    )


def handle(payments: Payments, event: Event, *, source: Source) -> str:
    """Do what an event asks for, once; give what became of it. `source` is how it came.

    It is written down in the transaction of its effect, so that one which fails, here or by a crash, is not lost when it comes
    again. Raises StripeFailure, and what Postgres raises: then it has to come again.
    """
    if event.ref.type not in HANDLED:
        outcome = IGNORED
    elif is_event_known(payments.engine, event.ref.id):
        outcome = KNOWN
    elif event.livemode != payments.stripe.livemode:
        outcome = _note(payments, event, WRONG_LIVEMODE)
    elif event.ref.type == INTENT_SUCCEEDED:
        # It has come to its end, so what the event holds can't be outdated.
        outcome = settle_and_follow(
            payments, IntentSeen(read_intent(event.thing)), event=event.ref
        ).outcome.value
    elif event.ref.type == SETUP_SUCCEEDED:
        outcome = _card_is_ready(payments, event)
    elif event.ref.type == METHOD_DETACHED:
        outcome = _card_is_gone(payments, event)
    elif event.ref.type in METHOD_UPDATED:
        outcome = _card_is_updated(payments, event)
    else:
        outcome = _look(payments, event)
    STRIPE_EVENTS.labels(source.value, outcome).inc()
    say = log.debug if outcome == IGNORED else log.info
    say(
        "an event of Stripe's is handled",
        stripe_event=event.ref.id,
        type=event.ref.type,
        object=event.thing.get("id"),
        source=source.value,
        outcome=outcome,
    )
    return outcome


def _look(payments: Payments, event: Event) -> str:
    """Look at the PaymentIntent that an event is about."""
    is_intent = event.thing.get("object") == "payment_intent"
    intent_id = event.thing.get("id" if is_intent else "payment_intent")
    if not isinstance(intent_id, str):
        return _note(payments, event, UNKNOWN_OBJECT)
    try:
        return look_up_intent(payments, intent_id, event=event.ref).outcome.value
    except StripeRefused as refused:
        if refused.code != RESOURCE_MISSING:  # then nothing is known of it, and it has to come again
            raise
        # An event of another account's, or of data that was deleted.
        return _note(payments, event, UNKNOWN_OBJECT)


def _note(payments: Payments, event: Event, outcome: str) -> str:
    with transaction(payments.engine) as connection:
        keep_event(connection, event.ref, outcome)
    return outcome


def _card_is_ready(payments: Payments, event: Event) -> str:
    """A customer has saved a card."""
    customer_id, method_id = event.thing.get("customer"), event.thing.get("payment_method")
    with transaction(payments.engine) as connection:
        org_id = find_org_of_customer(connection, customer_id) if isinstance(customer_id, str) else None
        locked = None if org_id is None else lock_billing(connection, org_id)
        if locked is None or not isinstance(method_id, str):
            outcome = UNKNOWN_CUSTOMER
        else:
            note_ready(connection, locked[0].org_id, method_id, locked[0].now)
            outcome = "card_ready"
        keep_event(connection, event.ref, outcome)
    return outcome


def _card_is_gone(payments: Payments, event: Event) -> str:
    """A card was detached from its customer. The object no longer names him; what it was before does."""
    method_id, customer_id = event.thing.get("id"), event.previous.get("customer")
    reloads = Reloads()
    with transaction(payments.engine) as connection:
        org_id = find_org_of_customer(connection, customer_id) if isinstance(customer_id, str) else None
        if org_id is None and isinstance(method_id, str):
            org_id = find_org_of_payment_method(connection, method_id)
        locked = None if org_id is None else lock_billing(connection, org_id)
        if locked is None or not isinstance(method_id, str):
            outcome = UNKNOWN_CUSTOMER
        else:
            reloads = note_detached(connection, *locked, method_id)
            outcome = "card_detached"
        keep_event(connection, event.ref, outcome)
    follow(payments, reloads)
    return outcome


def _card_is_updated(payments: Payments, event: Event) -> str:
    """A card has another number or expiry. An event can be old, so it is asked how the card is now."""
    method_id = event.thing.get("id")
    if not isinstance(method_id, str):
        return _note(payments, event, UNKNOWN_OBJECT)
    try:
        card = payments.stripe.retrieve_card(method_id)
    except StripeRefused as refused:
        if refused.code != RESOURCE_MISSING:
            raise
        return _note(payments, event, UNKNOWN_OBJECT)
    reloads = Reloads()
    with transaction(payments.engine) as connection:
        org_id = None if card.customer_id is None else find_org_of_customer(connection, card.customer_id)
        locked = None if org_id is None else lock_billing(connection, org_id)
        if locked is None:
            outcome = UNKNOWN_CUSTOMER
        else:
            reloads = note_updated(connection, *locked, method_id, card.identity)
            outcome = "card_updated"
        keep_event(connection, event.ref, outcome)
    follow(payments, reloads)
    return outcome
