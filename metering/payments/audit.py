"""The audit against Stripe: whether the ledger says what Stripe holds (CONTRACT.md section 7, `audit --stripe`)."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, select, text

from db.audit import Violation
from db.engine import transaction
from db.models import PaymentAttempt
from metering.payments.stripe_api import StripeApi
from metering.rules.payments import CURRENCY, AttemptStatus, Dispute, Intent, IntentStatus
from metering.runtime.clock import Clock

SETTLING: Final = timedelta(minutes=15)
"""How long a charge may be on its way between Stripe and the ledger."""
BEFORE_THE_FIRST: Final = timedelta(days=1)
"""How long before our first attempt Stripe is asked for charges: the database may have lost some."""

INTENT_HAS_ATTEMPT: Final = "stripe_charge_has_attempt"
CHARGE_CREDITED: Final = "stripe_charge_credited"
ATTEMPT_AT_STRIPE: Final = "attempt_charged_at_stripe"
REFUND_BOOKED: Final = "stripe_refund_booked"

MEANINGS: Final = {
    INTENT_HAS_ATTEMPT: "Every charge at Stripe that bears our mark has its attempt.",
    CHARGE_CREDITED: "Every charge that Stripe has taken is credited, with its amount.",
    ATTEMPT_AT_STRIPE: "Every succeeded attempt is a charge that Stripe has taken.",
    REFUND_BOOKED: "What went back to the card of a charge, by refund or dispute, is what the ledger says.",
}


@dataclass(slots=True)
class StripeAudit:
    """What a comparison with Stripe found."""

    charges: int = 0
    """PaymentIntents of ours that Stripe lists."""
    taken_cents: int = 0
    returned_cents: int = 0
    settling: int = 0
    """Charges that are on their way, and so not compared."""
    violations: list[Violation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    org_id: int
    status: str
    amount_cents: int


def audit_against_stripe(engine: Engine, stripe: StripeApi, clock: Clock) -> StripeAudit:
    """Compare attempts and ledger with what Stripe lists. Raises StripeFailure where it can't be asked.

    Stripe is asked first, the database after it: so whatever Stripe told has had time to be booked.
    """
    now = clock()
    found = StripeAudit()
    since = _since(engine, now)
    intents = [each for each in stripe.list_intents(since=since) if each.attempt_id is not None]
    returned = _returned(stripe, since)
    known, unmet, credited_cents, moves = _read(engine)
    found.charges = len(intents)
    for intent in intents:
        # By its mark too: of one that Stripe made only after its attempt had been given up the attempt never learned.
        attempt = known.get(intent.id) or unmet.get(intent.attempt_id)
        _compare(found, intent, attempt, credited_cents, moves, returned, now)
    listed = {each.id for each in intents if each.status == IntentStatus.SUCCEEDED}
    for intent_id, each in known.items():
        if each.status == AttemptStatus.SUCCEEDED and intent_id not in listed:
            found.violations.append(
                Violation(
                    ATTEMPT_AT_STRIPE,
                    each.org_id,
                    f"{intent_id} of {each.amount_cents} cents is credited, and Stripe doesn't list it as succeeded",
                )
            )
    return found


def _compare(
    found: StripeAudit,
    intent: Intent,
    attempt: _Known | None,
    credited_cents: dict[str, int],
    moves: dict[str, int],
    returned: "_Returned",
    now: datetime,
) -> None:
    settling = now - intent.created_at < SETTLING or (
        attempt is not None and attempt.status == AttemptStatus.OPEN
    )
    if attempt is None:
        if settling:
            found.settling += 1
        else:
            found.violations.append(
                Violation(INTENT_HAS_ATTEMPT, intent.org_id, f"{intent.id} ({intent.status}) has no attempt")
            )
        return
    if intent.status != IntentStatus.SUCCEEDED:
        return
    found.taken_cents += intent.received_cents
    returned_cents = returned.cents.get(intent.id, 0)
    found.returned_cents += returned_cents
    credited = credited_cents.get(intent.id, 0)
    if credited != intent.received_cents:
        if settling and not credited:
            found.settling += 1
            return
        found.violations.append(
            Violation(
                CHARGE_CREDITED,
                attempt.org_id,
                f"{intent.id}: Stripe has taken {intent.received_cents} cents, {credited} are credited",
            )
        )
    wrong_cents = moves.get(intent.id, 0) + returned_cents
    if wrong_cents:
        found.violations.append(
            Violation(
                REFUND_BOOKED,
                attempt.org_id,
                f"{intent.id}: {returned_cents} cents went back to the card, the ledger says"
                f" {-moves.get(intent.id, 0)}. If events of Stripe's can't be on their way any more: metering adjust"
                f" {attempt.org_id} --cents {-wrong_cents} --reason ... --key {intent.id}",
            )
        )
    for dispute in returned.foreign.get(intent.id, ()):
        if dispute.id not in moves:
            found.violations.append(
                Violation(
                    REFUND_BOOKED,
                    attempt.org_id,
                    f"{intent.id}: dispute {dispute.id} of {dispute.amount_cents} {dispute.currency} is not booked, because"
                    f" it is not in {CURRENCY}. Look up what it came to: metering adjust {attempt.org_id} --cents ..."
                    f" --reason ... --key {dispute.id}",
                )
            )


@dataclass(frozen=True, slots=True)
class _Returned:
    """By PaymentIntent, what went back to the card, by refunds and disputes."""

    cents: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    foreign: dict[str, list[Dispute]] = field(default_factory=lambda: defaultdict(list))
    """Disputes in other currencies."""


def _returned(stripe: StripeApi, since: datetime) -> _Returned:
    returned = _Returned()
    for intent_id, refund in stripe.list_refunds(since=since):
        if intent_id is not None and refund.effective:
            returned.cents[intent_id] += refund.amount_cents
    for intent_id, dispute in stripe.list_disputes(since=since):
        if intent_id is None:
            continue
        if dispute.foreign:
            returned.foreign[intent_id].append(dispute)
        elif dispute.withdrawn:
            returned.cents[intent_id] += 0 if dispute.reinstated else dispute.amount_cents
    return returned


def _since(engine: Engine, now: datetime) -> datetime:
    with transaction(engine) as connection:
        first = connection.scalar(
            select(PaymentAttempt.created_at).order_by(PaymentAttempt.created_at).limit(1)
        )
    return (first or now) - BEFORE_THE_FIRST


def _read(
    engine: Engine,
) -> tuple[dict[str, _Known], dict[UUID | None, _Known], dict[str, int], dict[str, int]]:
    """Attempts by PaymentIntent, those without one by id; what is credited, and what was booked since; from one snapshot.

    Corrections count where their key says: an adjustment under a PaymentIntent's id, or a dispute's.
    """
    known: dict[str, _Known] = {}
    unmet: dict[UUID | None, _Known] = {}
    credited_cents: dict[str, int] = {}
    moves: dict[str, int] = defaultdict(int)
    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    ) as connection:
        for row in connection.execute(_ATTEMPTS):
            attempt = _Known(row.org_id, row.status, row.amount_cents)
            if row.payment_intent_id is None:
                unmet[row.id] = attempt
            else:
                known[row.payment_intent_id] = attempt
        for row in connection.execute(_MONEY):
            if row.kind == "credit":
                credited_cents[row.source_key] = row.amount_cents
            else:
                moves[row.payment_intent_id or row.source_key] += row.amount_cents
    return known, unmet, credited_cents, moves


_ATTEMPTS: Final = text("""
    SELECT id, payment_intent_id, org_id, status, amount_cents FROM payment_attempts
""")
_MONEY: Final = text("""
    SELECT kind, source_key, amount_cents, metadata ->> 'payment_intent_id' AS payment_intent_id
    FROM transactions WHERE kind <> 'debit'
""")
