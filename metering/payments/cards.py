"""Customers and their cards at Stripe."""

from typing import Final

from sqlalchemy import Connection

from db.billing import (
    BillingAccount,
    is_detached,
    keep_customer,
    lock_billing,
    read_account,
    read_billing,
    set_default_card,
)
from db.engine import transaction
from db.orgs import OrgError
from metering.payments.errors import InvalidPaymentMethodError, ProviderUnavailableError
from metering.payments.outcomes import SetupIntentMade
from metering.payments.payments import Payments
from metering.payments.settling import follow
from metering.payments.stripe_api import SavedCard, StripeFailure, StripeRefused, StripeUnknown
from metering.runtime.crashpoints import CrashPoint, reach

CUSTOMER_KEYS: Final = 5
"""How many keys are tried for an org's customer, at the most."""


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
    key = f"customer-{org_id}-{int(billing.created_at.timestamp() * 1_000_000)}"
    customer_id = _create_customer(payments, org_id, key)
    reach(CrashPoint.CUSTOMER_AFTER_CREATE)
    with transaction(payments.engine) as connection:
        return keep_customer(connection, org_id, customer_id, payments.clock)


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
    """Begin saving a card: the customer's browser confirms the SetupIntent. Raises ProviderUnavailableError."""
    try:
        customer_id = ensure_customer(payments, org_id)
        setup_intent_id, client_secret = payments.stripe.create_setup_intent(customer_id)
    except StripeFailure as failure:
        raise unavailable(failure) from failure
    return SetupIntentMade(setup_intent_id, client_secret)


def set_default_payment_method(payments: Payments, org_id: int, payment_method_id: str) -> BillingAccount:
    """Make a saved card the one that is charged, at Stripe and here; reloads that waited for one are made at once.

    Raises InvalidPaymentMethodError for one that isn't attached to this org's customer, ProviderUnavailableError.
    """
    card = own_card(payments, require_account(payments, org_id), payment_method_id)
    try:
        payments.stripe.set_default_card(card.customer_id or "", card.id)
    except StripeRefused as refused:
        raise InvalidPaymentMethodError(
            "this payment method can't be charged: save another card"
        ) from refused
    except StripeFailure as failure:
        raise unavailable(failure) from failure
    reach(CrashPoint.CARD_AFTER_DEFAULT)
    with transaction(payments.engine) as connection:
        locked = lock_billing(connection, org_id, payments.clock)
        if locked is None:
            raise OrgError(f"there is no org {org_id}")
        if is_detached(connection, org_id, card.id):  # while Stripe was being asked
            raise InvalidPaymentMethodError("this payment method was detached: save another card")
        reloads = set_default_card(connection, *locked, card.id, card.identity)
        billing = _reread(connection, org_id)
    follow(payments, reloads)
    return billing


def own_card(payments: Payments, billing: BillingAccount, payment_method_id: str) -> SavedCard:
    """A payment method that belongs to the org's customer. Raises InvalidPaymentMethodError, ProviderUnavailableError."""
    foreign = InvalidPaymentMethodError(
        "payment_method_id is not a saved card of this organization: save it first with a SetupIntent"
    )
    if billing.stripe_customer_id is None:
        raise foreign
    try:
        card = payments.stripe.retrieve_card(payment_method_id)
    except StripeRefused as refused:
        raise foreign from refused
    except StripeFailure as failure:
        raise unavailable(failure) from failure
    if card.customer_id != billing.stripe_customer_id:
        raise foreign
    return card


def unavailable(failure: StripeFailure | None) -> ProviderUnavailableError:
    """What a customer is told of a failure of Stripe's: not what it was, which may be about our own account."""
    del failure
    return ProviderUnavailableError(
        "the payment provider can't be reached, or has not decided yet; the same request is safe to repeat"
    )


def _reread(connection: Connection, org_id: int) -> BillingAccount:
    billing = read_billing(connection, org_id)
    if billing is None:
        raise OrgError(f"there is no org {org_id}")
    return billing
