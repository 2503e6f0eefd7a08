"""Processing an attempt: asking Stripe for it, finding out what became of it, settling."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from structlog.contextvars import bound_contextvars

from db.attempts.attempts import Attempt
from db.payments.next_step import Step, put_off, take_next_step
from db.payments.settlement_outcome import NOT_BOOKED
from db.postgres.clock import ask_clock
from db.postgres.engine import transaction
from metering.payments.cards import replace_customer
from metering.payments.context import Payments
from metering.payments.metrics import MISSING_AT_STRIPE, count_ended
from metering.payments.settling import follow, settle_and_follow
from metering.payments.stripe_api import Search
from metering.payments.stripe_failures import (
    StripeDeclined,
    StripeFailure,
    StripeKeyTaken,
    StripeRefused,
    StripeUnknown,
)
from metering.rules.lookup_schedule import KEY_MEMORY, WORK_LEASE, sent_since, surely_absent
from metering.rules.payments import (
    AttemptKind,
    ChargeAbsent,
    ChargeRefused,
    Finding,
    Intent,
    IntentSeen,
    IntentStatus,
    Missing,
)
from metering.runtime.crashpoints import CrashPoint, reach

TO_BE_CANCELLED: Final = frozenset(
    {
        IntentStatus.REQUIRES_PAYMENT_METHOD,
        IntentStatus.REQUIRES_CONFIRMATION,
        IntentStatus.REQUIRES_ACTION,
        IntentStatus.REQUIRES_CAPTURE,
    }
)
"""An auto-reload in one of these waits for somebody who isn't there: it is cancelled, and then its part of the limit is free."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AttemptProgress:
    """What working on an attempt came to."""

    attempt: Attempt | None
    """As it is now; None where there is no such attempt."""
    intent: Intent | None = None
    """Its PaymentIntent as Stripe last told it, if Stripe was asked and told."""
    failure: StripeFailure | None = None
    """Why it isn't decided."""


def process_attempt(
    payments: Payments, org_id: int, attempt_id: UUID, *, for_client: bool = False
) -> AttemptProgress:
    """Do what is to be done about an attempt now, if anything is and nobody else does it.

    Raises what Postgres raises; a failure of Stripe's is told, and the attempt looked at again later. May be repeated at any
    time. `for_client`: a customer's request waits for it.
    """
    with transaction(payments.engine) as connection:
        taken = take_next_step(connection, org_id, attempt_id, for_client=for_client)
    follow(payments, taken.reloads)
    if taken.attempt is None or taken.step is Step.NOTHING:
        if taken.ended and taken.attempt is not None:
            count_ended(taken.attempt)
        return AttemptProgress(taken.attempt)
    return execute_step(payments, taken.step, taken.attempt)


def execute_step(payments: Payments, step: Step, attempt: Attempt) -> AttemptProgress:
    """Ask Stripe what `step` says, of an attempt that was taken in hand, and settle what it answers."""
    with bound_contextvars(org_id=attempt.org_id, attempt=str(attempt.id)):
        return _execute(payments, step, attempt)


def _execute(payments: Payments, step: Step, attempt: Attempt) -> AttemptProgress:
    of = (attempt.org_id, attempt.id)
    try:
        finding = _find_out(payments, step, attempt)
        if finding is None:
            return AttemptProgress(_put_off(payments, attempt))
        # Sent or found under its own key; what the row said may have been taken from it meanwhile.
        proven = isinstance(finding, IntentSeen) and finding.intent.id != attempt.payment_intent_id
        settled = settle_and_follow(payments, finding, of=of, proven=proven)
        if isinstance(finding, ChargeRefused) and finding.missing is not None:
            _handle_missing(payments, attempt, finding.missing)
        now_known = settled.attempt or attempt
        if settled.outcome in NOT_BOOKED:  # looking again soon would only tell it again
            now_known = _put_off(payments, attempt) or attempt
        intent = finding.intent if isinstance(finding, IntentSeen) else None
        if intent is not None:
            now_known, intent = cancel_if_stuck(payments, now_known, intent)
    except StripeFailure as failure:
        log.warning(
            "an attempt is not decided",
            attempt=str(attempt.id),
            org_id=attempt.org_id,
            step=step.name.lower(),
            failure=type(failure).__name__,
            code=failure.code,
        )
        return AttemptProgress(_put_off(payments, attempt), failure=failure)
    return AttemptProgress(now_known, intent)


def _handle_missing(payments: Payments, attempt: Attempt, missing: Missing) -> None:
    """What was dropped with the attempt is said; a customer is replaced, or will be by whoever saves a card next."""
    if missing is Missing.PAYMENT_METHOD:
        MISSING_AT_STRIPE.labels(missing.value).inc()
        log.warning(
            "Stripe doesn't have a payment method that was to be charged; it is dropped here",
            org_id=attempt.org_id,
            attempt=str(attempt.id),
            payment_method=attempt.payment_method_id,
        )
        return
    try:
        replace_customer(payments, attempt.org_id, attempt.customer_id)
    except StripeFailure as failure:
        log.warning("a missing customer is not replaced yet", org_id=attempt.org_id, code=failure.code)


def _find_out(payments: Payments, step: Step, attempt: Attempt) -> Finding | None:
    """What Stripe says; None where it can't be told yet. Raises StripeUndecided and StripeUnknown."""
    if step is Step.SEND:
        return _send(payments, attempt)
    if step is Step.FIND or attempt.payment_intent_id is None:
        search = _search(payments, attempt)
        if search.intent is not None:
            return IntentSeen(search.intent)
        last_sent_at = attempt.last_sent_at or attempt.created_at
        return ChargeAbsent() if surely_absent(last_sent_at, ask_clock(payments.engine), search.at) else None
    if step is Step.CANCEL:
        return IntentSeen(_cancel(payments, attempt.payment_intent_id))
    return IntentSeen(payments.stripe.retrieve_intent(attempt.payment_intent_id))


def _send(payments: Payments, attempt: Attempt) -> Finding | None:
    reach(CrashPoint.CHARGE_BEFORE_SEND)

    def timely() -> bool:
        """Not where this machine has slept since it took the attempt in hand: Stripe may have forgotten the key."""
        return ask_clock(payments.engine) - (attempt.last_sent_at or attempt.created_at) < WORK_LEASE

    if not timely():  # others may have ended it, too
        return None
    try:
        intent = payments.stripe.charge(attempt, timely=timely)
    except StripeRefused as refused:
        # Of a repeat: this time nothing was made, but the first time it may have been. A decline mostly has a PaymentIntent,
        # told or not. The key has its answer now, so what Stripe doesn't list after it was not made, and never will be.
        declined = isinstance(refused, StripeDeclined)
        repeated = attempt.first_sent_at != attempt.last_sent_at
        found = _find_intent(payments, attempt) if declined or repeated else None
        if found is not None:
            return IntentSeen(found)
        code = refused.code if refused.missing is None else refused.missing.code
        return ChargeRefused(code, refused.message, refused.missing, refused.concern, declined)
    except (StripeUnknown, StripeKeyTaken):
        # Perhaps it was made and only the answer is lost, or Stripe repeats an error of its own for this key for ever, or says
        # that this key has made something by another request: one of another version of this program.
        # So it is too with a request from before a restore, of which our row knows nothing: Stripe keeps keys for a day.
        found = _find_intent(payments, attempt, before=KEY_MEMORY)
        if found is None:
            raise
        return IntentSeen(found)
    reach(CrashPoint.CHARGE_AFTER_SEND)
    return IntentSeen(intent)


def _find_intent(payments: Payments, attempt: Attempt, *, before: timedelta = timedelta()) -> Intent | None:
    return _search(payments, attempt, before=before).intent


def _search(payments: Payments, attempt: Attempt, *, before: timedelta = timedelta()) -> Search:
    """Look for its PaymentIntent, made since it was first sent, or so long before."""
    first_sent_at = attempt.first_sent_at or attempt.created_at
    since = sent_since(first_sent_at, attempt.last_sent_at or first_sent_at) - before
    return payments.stripe.find_intent(attempt, since=since)


def cancel_if_stuck(payments: Payments, attempt: Attempt, intent: Intent) -> tuple[Attempt, Intent]:
    """Cancel the intent of an open auto-reload that waits for somebody who isn't there, and settle; give both as they then are.

    Only what Stripe confirms counts: it may have succeeded meanwhile. Raises StripeFailure.
    """
    stuck = attempt.open and attempt.kind is AttemptKind.AUTO_RELOAD and intent.status in TO_BE_CANCELLED
    if not stuck:
        return attempt, intent
    cancelled = _cancel(payments, intent.id)
    settled = settle_and_follow(payments, IntentSeen(cancelled), of=(attempt.org_id, attempt.id))
    return settled.attempt or attempt, cancelled


def _cancel(payments: Payments, intent_id: str) -> Intent:
    reach(CrashPoint.CHARGE_BEFORE_CANCEL)
    intent = payments.stripe.cancel_intent(intent_id)
    reach(CrashPoint.CHARGE_AFTER_CANCEL)
    return intent


def _put_off(payments: Payments, attempt: Attempt) -> Attempt | None:
    with transaction(payments.engine) as connection:
        return put_off(connection, attempt.org_id, attempt.id)
