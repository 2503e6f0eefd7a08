"""Settling what was found out about a charge, and what follows the commit: gates, signals, the next charge."""

from collections.abc import Callable
from functools import partial
from typing import Final
from uuid import UUID

import redis
import structlog
from sqlalchemy import Connection

from db.attempts.reload_rule import Reloads
from db.ledger.post_calls import BalanceChange
from db.payments.settlement import settle
from db.payments.settlement_outcome import NOT_BOOKED, Outcome, Settled
from db.payments.stripe_events import EventRef
from db.postgres.engine import transaction
from db.postgres.failures import Failure, diagnose
from metering.payments.context import Payments
from metering.payments.customers import recognise_customer
from metering.payments.intent_keys import attempt_by_key
from metering.payments.metrics import count_reloads, count_settled
from metering.rules.payments import Finding, IntentSeen
from metering.runtime.crashpoints import CrashPoint, reach
from metering.runtime.redis_connection import on_primary
from metering.signals.reload_signals import publish_pending

TRIES: Final = 3
"""How often a settlement that finds its org locked is tried; what is given up then is found by the reconciler."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def settle_and_follow(
    payments: Payments,
    finding: Finding,
    *,
    of: tuple[int, UUID] | None = None,
    proven: bool = False,
    event: EventRef | None = None,
    description: str | None = None,
    before_commit: Callable[[Connection, Settled], None] | None = None,
) -> Settled:
    """Bring the ledger to a finding, in a transaction of its own, then let follow what has to. Raises what Postgres raises.

    Of a customer whom this database doesn't know, and of a payment that may be another attempt's than its metadata name, Stripe
    is asked before; then it raises StripeFailure too. `proven`: as `settle` has it. `before_commit` writes what belongs into the
    same transaction.

    The only way to the ledger for the answer to a request, the webhook and the reconciler alike.
    """
    if isinstance(finding, IntentSeen):
        recognise_customer(payments, finding.intent)
        if of is None:
            of = attempt_by_key(payments, finding.intent)
            proven = of is not None
    tries_left = TRIES
    while True:
        tries_left -= 1
        try:
            with transaction(payments.engine) as connection:
                settled = settle(
                    connection,
                    finding,
                    of=of,
                    proven=proven,
                    livemode=payments.stripe.livemode,
                    event=event,
                    description=description,
                )
                if before_commit is not None:
                    before_commit(connection, settled)
            break
        except Exception as error:
            if diagnose(error) is not Failure.LOCKED or not tries_left:
                raise
    reach(CrashPoint.SETTLE_AFTER_COMMIT)
    count_settled(settled)
    _tell(settled, finding, event)
    if settled.outcome in NOT_BOOKED:
        log.error(
            "Stripe told of something that was not booked",
            reason=settled.outcome.value,
            intent=finding.intent.id if isinstance(finding, IntentSeen) else None,
            stripe_event=None if event is None else event.id,
        )
    if settled.displaced and settled.attempt is not None and isinstance(finding, IntentSeen):
        log.warning(
            "a payment is its own attempt's again: another was noted with it, or this one with another payment",
            intent=finding.intent.id,
            org_id=settled.attempt.org_id,
            attempt=str(settled.attempt.id),
        )
    if settled.metadata_differ and settled.attempt is not None and isinstance(finding, IntentSeen):
        log.warning(
            "the metadata of a payment were edited at Stripe, and are not followed",
            intent=finding.intent.id,
            org_id=settled.attempt.org_id,
            attempt=str(settled.attempt.id),
            named_org=finding.intent.org_id,
            named_attempt=str(finding.intent.attempt_id),
        )
    follow(payments, settled.reloads, settled.change)
    return settled


def _tell(settled: Settled, finding: Finding, event: EventRef | None) -> None:
    """One line of a payment's story: with the attempt, the PaymentIntent and Stripe's event it is found among all roles' logs."""
    attempt = settled.attempt
    if attempt is None:
        return
    say = log.debug if settled.outcome is Outcome.KNOWN else log.info
    say(
        "a charge is settled",
        org_id=attempt.org_id,
        attempt=str(attempt.id),
        kind=attempt.kind.value,
        status=attempt.status.value,
        amount_cents=attempt.amount_cents,
        outcome=settled.outcome.value,
        code=attempt.failure_code,
        intent=finding.intent.id if isinstance(finding, IntentSeen) else attempt.payment_intent_id,
        stripe_event=None if event is None else event.id,
    )


def follow(payments: Payments, reloads: Reloads, change: BalanceChange | None = None) -> None:
    """Do what follows a commit: the gate, the signals, the charges that were found due.

    Never fails: what can't be done now is found by the reconciler.
    """
    count_reloads(reloads)
    if change is not None or reloads.signals or reloads.attempts:
        reach(CrashPoint.FOLLOW_AFTER_COMMIT)
    try:
        if change is not None:
            on_primary(partial(payments.gates.follow, [change.balance], payments.clock()))
            reach(CrashPoint.FOLLOW_AFTER_GATE)
        if reloads.signals:
            on_primary(partial(publish_pending, payments.engine, payments.signals, reloads.signals))
    except redis.RedisError as error:
        log.warning("gates and signals are left to the reconciler", error=str(error))
    except (
        Exception
    ) as error:  # what is committed is committed; only a bug or Postgres's absence brings us here
        log.warning(
            "signals are left to the reconciler", error=str(error), exc_info=diagnose(error) is Failure.POISON
        )
    if reloads.attempts:
        reach(CrashPoint.FOLLOW_BEFORE_ENQUEUE)
    for org_id, attempt_id in reloads.attempts:
        log.info("an auto-reload is due", org_id=org_id, attempt=str(attempt_id))
        payments.enqueue(org_id, attempt_id)
