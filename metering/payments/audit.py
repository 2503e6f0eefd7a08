"""The audit against Stripe: whether the ledger says what Stripe holds.

See docs/reference/commands.md#metering-audit, `audit --stripe`.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, ScalarSelect, func, select, text

from db.audit.full import Violation
from db.models import Account, PaymentAttempt
from db.postgres.clock import ask_clock
from db.postgres.engine import transaction
from metering.payments.charges import TO_BE_CANCELLED
from metering.payments.stripe_api import StripeApi
from metering.rules.payments import CURRENCY, AttemptStatus, Dispute, Intent, IntentStatus, booked_attempt_id

SETTLING: Final = timedelta(minutes=15)
"""How long a charge may be on its way between Stripe and the ledger."""
BEFORE_THE_FIRST: Final = timedelta(days=1)
"""How long before our first org or attempt Stripe is asked for charges: the database may have lost some."""

INTENT_HAS_ATTEMPT: Final = "stripe_charge_has_attempt"
METADATA_MATCHES: Final = "stripe_metadata_matches"
CHARGE_CREDITED: Final = "stripe_charge_credited"
CHARGE_ELSEWHERE: Final = "stripe_charge_in_customers_org"
ATTEMPT_AT_STRIPE: Final = "attempt_charged_at_stripe"
REFUND_BOOKED: Final = "stripe_refund_booked"

MEANINGS: Final = {
    INTENT_HAS_ATTEMPT: "Every charge at Stripe that bears our mark, or was taken from an org's customer, has its attempt.",
    METADATA_MATCHES: "A charge's metadata at Stripe name its org and attempt: nobody has edited them.",
    CHARGE_CREDITED: "Every charge that Stripe has taken is credited, with its amount.",
    CHARGE_ELSEWHERE: "No charge is credited to another org than its customer's.",
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
    strangers: list[str] = field(default_factory=list)
    """Payments of customers that no org has, or of none, without our mark: not ours, unless an operator books them."""
    violations: list[Violation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Known:
    id: UUID
    org_id: int
    status: str
    amount_cents: int


@dataclass(frozen=True, slots=True)
class _Ledger:
    """What the database knows, from one snapshot. Corrections count by their key: a PaymentIntent's id, or a dispute's."""

    owners: dict[str, int] = field(default_factory=dict)
    """Orgs by customer."""
    attempts: dict[tuple[str, int], _Known] = field(default_factory=dict)
    """By PaymentIntent and org."""
    unmet: dict[tuple[UUID, int], _Known] = field(default_factory=dict)
    """Those without a PaymentIntent, by id and org."""
    credited_cents: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    """By PaymentIntent and org, as the next."""
    moved_cents: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    """What was booked since."""
    orgs: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """By PaymentIntent, all that have something of it."""

    def org_of(self, intent: Intent) -> int | None:
        """Whose a PaymentIntent is."""
        return self.owners.get(intent.customer_id or "")

    def attempt_of(self, intent: Intent, org_id: int) -> _Known | None:
        """Its attempt. By its mark too: of one that Stripe made only after its attempt had been given up that never learned."""
        known = self.attempts.get((intent.id, org_id))
        if known is None and intent.attempt_id is not None:
            known = self.unmet.get((intent.attempt_id, org_id))
        return known


def audit_against_stripe(engine: Engine, stripe: StripeApi) -> StripeAudit:
    """Compare customers, attempts and ledger of all orgs with what Stripe lists. Raises StripeFailure where it can't be asked.

    Stripe is asked first, the database after it: so whatever Stripe told has had time to be booked.
    """
    now = ask_clock(engine)
    found = StripeAudit()
    since = charges_since(engine, now)
    listed = list(stripe.list_intents(since=since))
    returned = _returned(stripe, since)
    ledger = _read(engine)
    taken = {each.id for each in listed if each.status == IntentStatus.SUCCEEDED}
    for intent in listed:
        from_customer = intent.id in taken and ledger.org_of(intent) is not None
        if intent.attempt_id is not None or from_customer or intent.id in ledger.orgs:
            found.charges += 1
            _compare(found, intent, ledger, returned, now)
        elif intent.id in taken:
            found.strangers.append(intent.id)
    for (intent_id, org_id), each in ledger.attempts.items():
        if each.status == AttemptStatus.SUCCEEDED and intent_id not in taken:
            found.violations.append(
                Violation(
                    ATTEMPT_AT_STRIPE,
                    org_id,
                    f"{intent_id} of {each.amount_cents} cents is credited, and Stripe doesn't list it as succeeded",
                )
            )
    return found


def _compare(
    found: StripeAudit, intent: Intent, ledger: _Ledger, returned: "_Returned", now: datetime
) -> None:
    owner = ledger.org_of(intent)
    attempt = None if owner is None else ledger.attempt_of(intent, owner)
    settling = now - intent.created_at < SETTLING or (
        attempt is not None and attempt.status == AttemptStatus.OPEN
    )
    _compare_others(found, intent, ledger, owner)
    if owner is None or attempt is None:
        if settling:
            found.settling += 1
            return
        whose = "nobody's customer that we know" if owner is None else f"org {owner}'s customer"
        unbooked = intent.status == IntentStatus.SUCCEEDED and intent.customer_id is not None
        remedy = ""
        if unbooked:
            remedy = (
                f". {intent.received_cents} cents are not booked:"
                f" metering payment book {owner or 'ORG'} {intent.id} --reason ..."
            )
        elif intent.status in TO_BE_CANCELLED:
            remedy = ". Nothing is taken yet; cancel it at Stripe"
        found.violations.append(
            Violation(
                INTENT_HAS_ATTEMPT,
                owner or intent.org_id,
                f"{intent.id} ({intent.status}) has no attempt; it is of {whose}{remedy}",
            )
        )
        return
    named = (intent.org_id, intent.attempt_id)
    if attempt.id != booked_attempt_id(intent.id) and named != (owner, attempt.id):
        found.violations.append(
            Violation(
                METADATA_MATCHES,
                owner,
                f"{intent.id}: its metadata name org {intent.org_id} and attempt {intent.attempt_id}. Nothing follows them."
                f" Put back at Stripe: org_id {owner}, attempt_id {attempt.id}",
            )
        )
    if intent.status == IntentStatus.SUCCEEDED:
        _compare_money(found, intent, ledger, returned, owner, settling=settling)


def _compare_others(found: StripeAudit, intent: Intent, ledger: _Ledger, owner: int | None) -> None:
    """Whether another org has something of a payment."""
    for org_id in sorted(ledger.orgs.get(intent.id, set()) - {owner}):
        cents = ledger.credited_cents[intent.id, org_id] + ledger.moved_cents[intent.id, org_id]
        if cents:
            found.violations.append(
                Violation(
                    CHARGE_ELSEWHERE,
                    org_id,
                    f"{intent.id}: its customer is org {owner}'s, and {cents} cents of it are here:"
                    f" metering adjust {org_id} --cents {-cents} --reason ... --key {intent.id}",
                )
            )


def _compare_money(
    found: StripeAudit, intent: Intent, ledger: _Ledger, returned: "_Returned", org_id: int, *, settling: bool
) -> None:
    returned_cents = returned.cents.get(intent.id, 0)
    found.taken_cents += intent.received_cents
    found.returned_cents += returned_cents
    credited = ledger.credited_cents[intent.id, org_id]
    wrong_cents = ledger.moved_cents[intent.id, org_id] + returned_cents
    if credited != intent.received_cents and credited + wrong_cents != intent.received_cents:
        if settling and not credited:
            found.settling += 1
            return
        found.violations.append(
            Violation(
                CHARGE_CREDITED,
                org_id,
                f"{intent.id}: Stripe has taken {intent.received_cents} cents, {credited} are credited",
            )
        )
    if wrong_cents and credited == intent.received_cents:
        found.violations.append(
            Violation(
                REFUND_BOOKED,
                org_id,
                f"{intent.id}: {returned_cents} cents went back to the card, the ledger says"
                f" {-ledger.moved_cents[intent.id, org_id]}. If no event of Stripe's is still on its way: metering adjust"
                f" {org_id} --cents {-wrong_cents} --reason ... --key {intent.id}",
            )
        )
    for dispute in returned.foreign.get(intent.id, ()):
        if org_id not in ledger.orgs.get(dispute.id, set()):
            found.violations.append(
                Violation(
                    REFUND_BOOKED,
                    org_id,
                    f"{intent.id}: dispute {dispute.id} of {dispute.amount_cents} {dispute.currency} is not booked, because"
                    f" it is not in {CURRENCY}. Look up what it came to: metering adjust {org_id} --cents ..."
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


def charges_since(engine: Engine, now: datetime) -> datetime:
    """Since when Stripe may hold a payment of ours: before the first org, or the first attempt, there was nobody to pay."""
    with transaction(engine) as connection:
        first = connection.scalar(select(func.least(_first(PaymentAttempt), _first(Account))))
    return (first or now) - BEFORE_THE_FIRST


def _first(of: type[PaymentAttempt] | type[Account]) -> ScalarSelect[datetime]:
    return select(func.min(of.created_at)).scalar_subquery()


def _read(engine: Engine) -> _Ledger:
    ledger = _Ledger()
    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    ) as connection:
        for row in connection.execute(_CUSTOMERS):
            ledger.owners[row.customer_id] = row.org_id
        for row in connection.execute(_ATTEMPTS):
            attempt = _Known(row.id, row.org_id, row.status, row.amount_cents)
            if row.payment_intent_id is None:
                ledger.unmet[row.id, row.org_id] = attempt
            else:
                ledger.attempts[row.payment_intent_id, row.org_id] = attempt
                ledger.orgs[row.payment_intent_id].add(row.org_id)
        for row in connection.execute(_MONEY):
            key = row.source_key if row.kind == "credit" else row.payment_intent_id or row.source_key
            booked = ledger.credited_cents if row.kind == "credit" else ledger.moved_cents
            booked[key, row.org_id] += row.amount_cents
            ledger.orgs[key].add(row.org_id)
    return ledger


_CUSTOMERS: Final = text("SELECT customer_id, org_id FROM stripe_customers")
_ATTEMPTS: Final = text("""
    SELECT id, payment_intent_id, org_id, status, amount_cents FROM payment_attempts
""")
_MONEY: Final = text("""
    SELECT org_id, kind, source_key, amount_cents, metadata ->> 'payment_intent_id' AS payment_intent_id
    FROM transactions WHERE kind <> 'debit'
""")
