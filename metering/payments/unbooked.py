"""Payments at Stripe that no attempt of ours has made: finding those that aren't credited, and crediting one by hand."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, Engine, select, text

from db.accounts.billing import read_billing
from db.attempts.attempts import find_by_intent
from db.models import Kind, Transaction
from db.models.errors import UnknownOrgError
from db.operators.log import Actor, log_action
from db.payments.settlement_outcome import Settled
from db.payments.stripe_customers import CustomerTakenError, claim_customer, find_org_of_customer
from db.postgres.clock import ask_clock
from db.postgres.engine import transaction
from metering.payments.audit import SETTLING, charges_since
from metering.payments.context import Payments
from metering.payments.customers import recognise
from metering.payments.settling import settle_and_follow
from metering.payments.stripe_api import StripeApi
from metering.payments.stripe_failures import StripeRefused
from metering.rules.payments import CURRENCY, Intent, IntentSeen, IntentStatus, booked_attempt_id

_ORGS_OF_CUSTOMERS: Final = text(
    "SELECT customer_id, org_id FROM stripe_customers WHERE customer_id = ANY(CAST(:ids AS text[]))"
)
_CREDITED: Final = text(
    "SELECT source_key FROM transactions WHERE kind = 'credit' AND source_key = ANY(CAST(:ids AS text[]))"
)
_ATTEMPTS: Final = text("""
    SELECT org_id, CAST(id AS text) AS name FROM payment_attempts WHERE CAST(id AS text) = ANY(CAST(:ids AS text[]))
    UNION SELECT org_id, payment_intent_id FROM payment_attempts WHERE payment_intent_id = ANY(CAST(:intents AS text[]))
""")


class BookingError(Exception):
    """A payment that can't be booked. The text says why, and what to do."""


class Unbooked(StrEnum):
    """Why a payment isn't credited."""

    UNKNOWN_INTENT = "unknown_intent"
    """It is an org's customer's, and no attempt of ours made it: an operator may book it."""
    UNKNOWN_CUSTOMER = "unknown_customer"
    """Its customer is no org's: an operator may book it, and makes him that org's."""
    NOT_SETTLED = "not_settled"
    """It is an attempt's of ours: the jobs book it, once they hear of it."""
    NO_CUSTOMER = "no_customer"
    FOREIGN_CURRENCY = "foreign_currency"
    WRONG_AMOUNT = "wrong_amount"
    """Less was received than it was of."""


@dataclass(frozen=True, slots=True)
class UnbookedPayment:
    """A payment that Stripe has taken and the ledger doesn't hold. `org_id` is its customer's, if an org has him."""

    payment_intent_id: str
    org_id: int | None
    customer_id: str | None
    amount_cents: int
    """What was received; of `currency`."""
    currency: str
    created_at: datetime
    reason: Unbooked


@dataclass(frozen=True, slots=True)
class Booked:
    """A payment's credit. `booked` is False where it had been credited before."""

    transaction_id: int
    amount_cents: int
    balance_after_cents: int
    booked: bool
    customer_claimed: bool
    """Whether the customer has become the org's with it."""


def find_unbooked(engine: Engine, stripe: StripeApi) -> list[UnbookedPayment]:
    """Payments that Stripe has taken since the installation has orgs and that no org was credited with, newest first.

    Attempts' charges of the last 15 minutes may be on their way, and are left out. Raises StripeFailure.
    """
    now = ask_clock(engine)
    taken = [
        each
        for each in stripe.list_intents(since=charges_since(engine, now))
        if each.status == IntentStatus.SUCCEEDED
    ]
    with transaction(engine) as connection:
        ids = [each.id for each in taken]
        credited = set(connection.scalars(_CREDITED, {"ids": ids}))
        left = [each for each in taken if each.id not in credited]
        customers = {each.customer_id for each in left if each.customer_id is not None}
        owners = {
            row.customer_id: row.org_id
            for row in connection.execute(_ORGS_OF_CUSTOMERS, {"ids": [*customers]})
        }
        known = _attempts_of(connection, left)
    found: list[UnbookedPayment] = []
    for intent in left:
        org_id = owners.get(intent.customer_id or "")
        reason = _why(intent, org_id, known)
        if reason is Unbooked.NOT_SETTLED and now - intent.created_at < SETTLING:
            continue
        found.append(
            UnbookedPayment(
                intent.id,
                org_id,
                intent.customer_id,
                intent.received_cents,
                intent.currency,
                intent.created_at,
                reason,
            )
        )
    return found


def _attempts_of(connection: Connection, intents: Collection[Intent]) -> set[tuple[int, str]]:
    """Org and name of the attempts that these could be of: by PaymentIntent, and by our mark."""
    marks = [str(each.attempt_id) for each in intents if each.attempt_id is not None]
    rows = connection.execute(_ATTEMPTS, {"ids": marks, "intents": [each.id for each in intents]})
    return {(row.org_id, row.name) for row in rows}


def _why(intent: Intent, org_id: int | None, known: set[tuple[int, str]]) -> Unbooked:
    if intent.customer_id is None:
        return Unbooked.NO_CUSTOMER
    if intent.currency != CURRENCY:
        return Unbooked.FOREIGN_CURRENCY
    if intent.amount_cents != intent.received_cents:
        return Unbooked.WRONG_AMOUNT
    if org_id is None:
        return Unbooked.UNKNOWN_CUSTOMER
    ours = {(org_id, intent.id), (org_id, str(intent.attempt_id))} & known
    return Unbooked.NOT_SETTLED if ours else Unbooked.UNKNOWN_INTENT


def book_payment(payments: Payments, org_id: int, intent_id: str, reason: str, actor: Actor) -> Booked:
    """Credit a payment to the org whose customer has paid, once for ever, with what has gone back of it.

    `reason` is the credit's description. A customer whom no org has becomes this org's, in a transaction of its own before
    anything is credited. Raises BookingError, UnknownOrgError, StripeFailure, and what Postgres raises.
    """
    with transaction(payments.engine) as connection:
        if read_billing(connection, org_id) is None:
            raise UnknownOrgError(org_id)
    try:
        intent = payments.stripe.retrieve_intent(intent_id)
    except StripeRefused as refused:
        raise BookingError(f"Stripe doesn't give the payment {intent_id}: {refused.message}") from refused
    customer_id = _require_bookable(payments, intent)
    recognise(payments, customer_id, before=intent.created_at)
    claimed = _claim(payments, customer_id, org_id, intent_id, reason, actor)
    seen = IntentSeen(
        replace(intent, kind=None),  # whatever the metadata say: nobody's reload made it that we know of
        payments.stripe.refunds_of(intent_id),
        payments.stripe.disputes_of(intent_id),
    )
    with transaction(payments.engine) as connection:
        known = find_by_intent(connection, org_id, intent_id)
        before = _credit_of(connection, intent_id)
    attempt_id = booked_attempt_id(intent_id) if known is None else known.id

    def log_credit(connection: Connection, settled: Settled) -> None:
        if settled.change is not None:
            log_action(
                connection,
                actor,
                "payment book",
                org_id=org_id,
                subject=intent_id,
                reason=reason,
                details={
                    "amount_cents": intent.amount_cents,
                    "balance_after_cents": settled.change.balance_cents,
                },
            )

    settled = settle_and_follow(
        payments, seen, of=(org_id, attempt_id), description=reason, before_commit=log_credit
    )
    with transaction(payments.engine) as connection:
        credit = _credit_of(connection, intent_id)
    if credit is None:
        raise BookingError(f"{intent_id} is not booked: {settled.outcome.value}.")
    if credit.org_id != org_id:
        raise BookingError(f"{intent_id} is credited to org {credit.org_id}, by transaction {credit.id}.")
    return Booked(
        credit.id,
        credit.amount_cents,
        credit.balance_after_cents,
        booked=before is None and settled.change is not None,
        customer_claimed=claimed,
    )


def _require_bookable(payments: Payments, intent: Intent) -> str:
    """The customer of a payment that may be booked. Raises BookingError."""
    if intent.livemode != payments.stripe.livemode:
        mode = "a test's" if payments.stripe.livemode else "a live one"
        raise BookingError(f"{intent.id} is {mode}, and STRIPE_API_KEY is of the other mode.")
    if intent.status != IntentStatus.SUCCEEDED:
        raise BookingError(
            f"{intent.id} is {intent.status} at Stripe: only what has succeeded can be booked."
        )
    if intent.currency != CURRENCY:
        raise BookingError(
            f"{intent.id} is in {intent.currency}, and balances are in {CURRENCY}: see what it came to, and use `metering adjust`"
            f" with --key {intent.id}."
        )
    if intent.received_cents != intent.amount_cents or intent.received_cents <= 0:
        raise BookingError(
            f"{intent.id} is of {intent.amount_cents} cents, and {intent.received_cents} were received: only a whole payment is"
            " booked."
        )
    if intent.customer_id is None:
        raise BookingError(
            f"{intent.id} has no customer at Stripe, so nothing proves whose it is: use `metering adjust` with --key {intent.id}."
        )
    return intent.customer_id


def _claim(
    payments: Payments, customer_id: str, org_id: int, intent_id: str, reason: str, actor: Actor
) -> bool:
    """Make the customer the org's, unless he is; give whether he wasn't. Raises BookingError for another org's."""
    with transaction(payments.engine) as connection:
        before = find_org_of_customer(connection, customer_id)
        try:
            claim_customer(connection, customer_id, org_id)
        except CustomerTakenError as error:
            raise BookingError(f"{intent_id} is not org {org_id}'s: {error}.") from error
        if before is None:
            log_action(
                connection,
                actor,
                "payment book",
                org_id=org_id,
                subject=intent_id,
                reason=reason,
                details={"customer_claimed": customer_id},
            )
    return before is None


def _credit_of(connection: Connection, intent_id: str) -> Transaction | None:
    """A payment's credit, whichever org has it."""
    found: Transaction | None = connection.execute(
        select(
            Transaction.id, Transaction.org_id, Transaction.amount_cents, Transaction.balance_after_cents
        ).where(Transaction.kind == Kind.CREDIT.value, Transaction.source_key == intent_id)
    ).one_or_none()  # type: ignore[assignment]
    return found
