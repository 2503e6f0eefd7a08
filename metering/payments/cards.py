"""Customers and their cards at Stripe."""

from contextlib import suppress
from typing import Final

import structlog
from sqlalchemy import Connection

from db.accounts.billing import (
    BillingAccount,
    change_customer,
    is_detached,
    keep_customer,
    lock_billing,
    read_account,
    read_billing,
    set_default_card,
)
from db.models.errors import OrgError
from db.payments.stripe_customers import claim_customer
from db.postgres.engine import transaction
from metering.payments.context import Payments
from metering.payments.customers import customer_key
from metering.payments.errors import (
    CardDeclinedError,
    InvalidPaymentMethodError,
    PaymentError,
    ProviderMisconfiguredError,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from metering.payments.metrics import MISSING_AT_STRIPE
from metering.payments.outcomes import SetupIntentMade
from metering.payments.settling import follow
from metering.payments.stripe_api import SavedCard
from metering.payments.stripe_failures import (
    StripeDeclined,
    StripeFailure,
    StripeMisconfigured,
    StripeRefused,
    StripeUnknown,
)
from metering.rules.payments import Missing
from metering.runtime.crashpoints import CrashPoint, reach

CUSTOMER_KEYS: Final = 5
"""How many keys are tried for an org's customer, at the most."""
REFUSED: Final = (
    "the payment provider refuses this request, and charges nothing for it; to repeat it is no use: tell us"
)

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def require_account(payments: Payments, org_id: int) -> BillingAccount:
    """The org's billing account. Raises OrgError for an org that isn't there."""
    billing = read_account(payments.engine, org_id)
    if billing is None:
        raise OrgError(f"there is no org {org_id}")
    return billing


def ensure_customer(payments: Payments, org_id: int) -> str:
    """The org's customer at Stripe, made when it is first needed. Raises StripeFailure.

    Two who need it at once get the same one: they ask with the same key, which also bears the org's time of making: a
    database that was set up anew beside an old account at Stripe gets customers of its own.
    """
    billing = require_account(payments, org_id)
    if billing.stripe_customer_id is not None:
        return billing.stripe_customer_id
    customer_id = _create_customer(payments, org_id, customer_key(org_id, billing.created_at))
    reach(CrashPoint.CUSTOMER_AFTER_CREATE)
    with transaction(payments.engine) as connection:
        claim_customer(connection, customer_id, org_id)
    with transaction(payments.engine) as connection:
        return keep_customer(connection, org_id, customer_id)


def replace_customer(payments: Payments, org_id: int, missing_id: str) -> str:
    """Make a customer in the place of one whom Stripe doesn't have, and drop the cards of that one; give the one that counts.

    He was deleted there, or the key is another account's. All who find it out at once get the same one, also after a crash: they
    ask with the same key, which bears the id of the one who is missing. Raises StripeFailure.
    """
    billing = require_account(payments, org_id)
    if billing.stripe_customer_id != missing_id:  # somebody was quicker
        return ensure_customer(payments, org_id)
    customer_id = _create_customer(
        payments, org_id, f"{customer_key(org_id, billing.created_at)}-after-{missing_id}"
    )
    reach(CrashPoint.CUSTOMER_AFTER_CREATE)
    with transaction(payments.engine) as connection:
        claim_customer(connection, customer_id, org_id)
    with transaction(payments.engine) as connection:
        reloads = change_customer(connection, org_id, missing_id, customer_id)
    if reloads is None:
        return ensure_customer(payments, org_id)
    MISSING_AT_STRIPE.labels(Missing.CUSTOMER.value).inc()
    log.warning(
        "Stripe doesn't have an org's customer: he was deleted there, or the key is another account's. There is a new one, and"
        " the cards of the old one are dropped",
        org_id=org_id,
        customer=customer_id,
        missing_customer=missing_id,
    )
    follow(payments, reloads)
    return customer_id


def _create_customer(payments: Payments, org_id: int, key: str) -> str:
    """Make a customer with the first key for which Stripe keeps no error of its own: it would repeat that for a day.

    A customer whom such an error has hidden stays behind at Stripe; nobody ever pays as him.
    """
    keys = [key, *(f"{key}-{number}" for number in range(2, CUSTOMER_KEYS + 1))]
    for each in keys[:-1]:
        try:
            return payments.stripe.create_customer(org_id, f"Org {org_id}", key=each)
        except StripeUnknown as failure:
            if not failure.replayed:
                raise
    return payments.stripe.create_customer(org_id, f"Org {org_id}", key=keys[-1])


def create_setup_intent(payments: Payments, org_id: int) -> SetupIntentMade:
    """Begin saving a card: the customer's browser confirms the SetupIntent.

    Raises CardDeclinedError, ProviderUnavailableError, ProviderRefusedError.
    """
    try:
        customer_id = ensure_customer(payments, org_id)
        try:
            made = payments.stripe.create_setup_intent(customer_id)
        except StripeRefused as refused:
            if refused.missing is not Missing.CUSTOMER:
                raise
            made = _create_setup_intent_of_another(payments, org_id, customer_id)
    except StripeFailure as failure:
        raise not_done(failure) from failure
    return SetupIntentMade(*made)


def _create_setup_intent_of_another(payments: Payments, org_id: int, missing_id: str) -> tuple[str, str]:
    """As `create_setup_intent`, in the place of a customer whom Stripe doesn't have.

    Whoever takes his place may be missing too: a database that was restored has forgotten him and his own end, and Stripe gives
    him again, by the same key.
    """
    for _ in range(CUSTOMER_KEYS):
        customer_id = replace_customer(payments, org_id, missing_id)
        try:
            return payments.stripe.create_setup_intent(customer_id)
        except StripeRefused as refused:
            if refused.missing is not Missing.CUSTOMER:
                raise
            missing_id = customer_id
    return payments.stripe.create_setup_intent(replace_customer(payments, org_id, missing_id))


def set_default_payment_method(payments: Payments, org_id: int, payment_method_id: str) -> BillingAccount:
    """Make a saved card the one that is charged, at Stripe and here; reloads that waited for one are made at once.

    Raises InvalidPaymentMethodError for one that isn't attached to this org's customer, CardDeclinedError,
    ProviderUnavailableError, ProviderRefusedError.
    """
    card = own_card(payments, require_account(payments, org_id), payment_method_id)
    try:
        payments.stripe.set_default_card(card.customer_id or "", card.id)
    except StripeRefused as refused:
        if refused.missing is None:
            raise not_done(refused) from refused
        if (
            refused.missing is Missing.CUSTOMER
        ):  # deleted just now; saving another card finds it out if this doesn't
            with suppress(StripeFailure):
                replace_customer(payments, org_id, card.customer_id or "")
        raise InvalidPaymentMethodError(
            "this payment method can't be charged: save another card"
        ) from refused
    except StripeFailure as failure:
        raise not_done(failure) from failure
    reach(CrashPoint.CARD_AFTER_DEFAULT)
    with transaction(payments.engine) as connection:
        locked = lock_billing(connection, org_id)
        if locked is None:
            raise OrgError(f"there is no org {org_id}")
        if is_detached(connection, org_id, card.id):  # while Stripe was being asked
            raise InvalidPaymentMethodError("this payment method was detached: save another card")
        reloads = set_default_card(connection, *locked, card.id, card.identity)
        billing = _reread(connection, org_id)
    follow(payments, reloads)
    return billing


def own_card(payments: Payments, billing: BillingAccount, payment_method_id: str) -> SavedCard:
    """A payment method that belongs to the org's customer.

    Raises InvalidPaymentMethodError, CardDeclinedError, ProviderUnavailableError.
    """
    foreign = InvalidPaymentMethodError(
        "payment_method_id is not a saved card of this organization: save it first with a SetupIntent"
    )
    if billing.stripe_customer_id is None:
        raise foreign
    try:
        card = payments.stripe.retrieve_card(payment_method_id)
    except StripeDeclined as declined:
        raise not_done(declined) from declined
    except StripeRefused as refused:
        raise foreign from refused
    except StripeFailure as failure:
        raise not_done(failure) from failure
    if card.customer_id != billing.stripe_customer_id:
        raise foreign
    return card


def not_done(failure: StripeFailure | None) -> PaymentError:
    """What a customer is told of a failure of Stripe's: not what it was, which may be about our own account.

    Of something of which nothing has been sent before: else it is `undecided`.
    """
    if isinstance(failure, StripeDeclined):
        return CardDeclinedError(f"{failure.message} ({failure.code})")
    if isinstance(failure, StripeRefused):
        return ProviderRefusedError(REFUSED)
    return undecided(failure)


def undecided(failure: StripeFailure | None) -> ProviderUnavailableError:
    """What a customer is told where Stripe may have done what it was asked, or may do it yet: never that nothing was charged."""
    if isinstance(failure, StripeMisconfigured | StripeRefused):
        return ProviderMisconfiguredError(
            "the payment provider does not accept our requests at the moment, so it isn't known yet what became of this one."
            " To repeat the same request charges nothing twice, but is of no use before we have mended this: tell us"
        )
    return ProviderUnavailableError(
        "the payment provider can't be reached, or has not decided yet; the same request is safe to repeat"
    )


def _reread(connection: Connection, org_id: int) -> BillingAccount:
    billing = read_billing(connection, org_id)
    if billing is None:
        raise OrgError(f"there is no org {org_id}")
    return billing
