"""PaymentIntents: made, changed, cancelled, listed. How they are confirmed is in confirmations.py."""

from typing import Final

from metering.sandbox.stripe.actions import (
    CONFIRMING,
    METHODS,
    NO_TYPES,
    accepted_methods,
    chosen_method,
    require_confirm,
    require_own_secret,
)
from metering.sandbox.stripe.confirmations import confirm_intent
from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import (
    EXPAND,
    LISTING,
    Boolean,
    Choice,
    Hash,
    Integer,
    Metadata,
    Param,
    Text,
    changed_metadata,
)
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json, new_id, new_secret

MIN_CENTS: Final = 50
MAX_CENTS: Final = 99_999_999
CURRENCIES: Final = ("usd", "eur", "gbp", "cad", "aud", "chf", "jpy")

CANCELLABLE: Final = (
    "requires_payment_method",
    "requires_capture",
    "requires_confirmation",
    "requires_action",
)

_FIELDS: Final[dict[str, Param]] = {
    **EXPAND,
    "customer": Text(),
    "description": Text(1_000, unsettable=True),
    "metadata": Metadata(),
    "receipt_email": Text(unsettable=True),
    "setup_future_usage": Choice(("off_session", "on_session")),
    "statement_descriptor_suffix": Text(22, unsettable=True),
}
_CONFIRMING: Final[dict[str, Param]] = {
    **CONFIRMING,
    "error_on_requires_action": Boolean(),
    "off_session": Boolean(also=("one_off", "recurring")),
}
CREATE: Final = Hash(
    {
        **_FIELDS,
        **METHODS,
        **_CONFIRMING,
        "amount": Integer(1),
        "capture_method": Choice(("automatic", "automatic_async")),
        "confirm": Boolean(),
        "currency": Text(),
    },
    frozenset({"amount", "currency"}),
)
UPDATE: Final = Hash(
    {
        **_FIELDS,
        **NO_TYPES,
        "amount": Integer(1),
        "payment_method": Text(),
    }
)
RETRIEVE: Final = Hash({**EXPAND, "client_secret": Text()})
CONFIRM: Final = Hash(
    {
        **EXPAND,
        **NO_TYPES,
        **_CONFIRMING,
        "receipt_email": _FIELDS["receipt_email"],
        "setup_future_usage": _FIELDS["setup_future_usage"],
    }
)
CANCEL: Final = Hash(
    {
        **EXPAND,
        "cancellation_reason": Choice(("abandoned", "duplicate", "fraudulent", "requested_by_customer")),
    }
)
LIST: Final = Hash({**LISTING, "customer": Text()})

_ONLY_WHEN_CONFIRMED: Final = ("off_session", "error_on_requires_action", "return_url")


def create(work: Work, params: Json) -> Json:
    """Make a PaymentIntent; with `confirm` charge it at once. Raises DeclinedError, which carries it."""
    _require_amount(params["amount"])
    currency = params["currency"].lower()
    if currency not in CURRENCIES:
        raise InvalidRequestError(
            f"Invalid currency: {currency}. This sandbox knows {', '.join(CURRENCIES)}", param="currency"
        )
    if "customer" in params:
        work.find(params["customer"], "customer", "customer")
    require_confirm(params, _ONLY_WHEN_CONFIRMED, "PaymentIntent")
    intent = work.add(_intent(work, params, currency))
    method = chosen_method(work, intent, params)
    if method is not None:
        intent |= {"payment_method": method["id"], "status": "requires_confirmation"}
    work.emit("payment_intent.created", intent)
    return confirm_intent(work, intent, params) if params.get("confirm") else intent


def retrieve(work: Work, params: Json, intent_id: str) -> Json:
    """A PaymentIntent. A `client_secret` that is given must be its own."""
    intent = work.find(intent_id, "payment_intent", "intent", in_path=True)
    require_own_secret(intent, params, "PaymentIntent")
    return intent


def update(work: Work, params: Json, intent_id: str) -> Json:
    """Change the fields given: money and method only while it is unpaid, what is only text at any time."""
    held = work.find(intent_id, "payment_intent", "intent", in_path=True)
    bound = {
        "amount",
        "customer",
        "payment_method",
        "setup_future_usage",
    } & params.keys()
    if bound and held["status"] not in {
        "requires_payment_method",
        "requires_confirmation",
        "requires_action",
    }:
        raise InvalidRequestError(
            f"This PaymentIntent's {min(bound)} could not be updated because it has a status of {held['status']}.",
            code="payment_intent_unexpected_state",
            payment_intent=held,
        )
    intent = work.edit(held)
    if "amount" in params:
        _require_amount(params["amount"])
        intent["amount"] = params["amount"]
    if "customer" in params:
        work.find(params["customer"], "customer", "customer")
        intent["customer"] = params["customer"]
    if "payment_method" in params:
        method = chosen_method(work, intent, params)
        intent |= {
            "payment_method": method["id"] if method else None,
            "status": "requires_confirmation",
            "next_action": None,
        }
    if "metadata" in params:
        intent["metadata"] = changed_metadata(intent["metadata"], params["metadata"])
    plain = ("description", "receipt_email", "setup_future_usage", "statement_descriptor_suffix")
    intent |= {name: params[name] for name in plain if name in params}
    return intent


def confirm(work: Work, params: Json, intent_id: str) -> Json:
    """Charge a PaymentIntent. Raises DeclinedError, which carries it."""
    held = work.find(intent_id, "payment_intent", "intent", in_path=True)
    if held["status"] in {"succeeded", "processing", "requires_capture"}:
        raise InvalidRequestError(
            "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.",
            code="payment_intent_unexpected_state",
            payment_intent=held,
        )
    if held["status"] == "canceled":
        raise InvalidRequestError(
            "You cannot confirm this PaymentIntent because it has a status of canceled. Only a PaymentIntent with one of the "
            "following statuses may be confirmed: requires_confirmation, requires_action.",
            code="payment_intent_unexpected_state",
            payment_intent=held,
        )
    intent = work.edit(held)
    plain = ("receipt_email", "setup_future_usage")
    intent |= {name: params[name] for name in plain if name in params}
    return confirm_intent(work, intent, params)


def cancel(work: Work, params: Json, intent_id: str) -> Json:
    """Cancel a PaymentIntent for good, unless it has succeeded or is cancelled already."""
    held = work.find(intent_id, "payment_intent", "intent", in_path=True)
    if held["status"] not in CANCELLABLE:
        raise InvalidRequestError(
            f"You cannot cancel this PaymentIntent because it has a status of {held['status']}. Only a PaymentIntent with one of "
            f"the following statuses may be canceled: {', '.join(CANCELLABLE)}.",
            code="payment_intent_unexpected_state",
            payment_intent=held,
        )
    intent = work.edit(held)
    intent |= {
        "status": "canceled",
        "canceled_at": work.now,
        "cancellation_reason": params.get("cancellation_reason"),
        "next_action": None,
    }
    work.emit("payment_intent.canceled", intent)
    return intent


def list_intents(work: Work, params: Json) -> Json:
    """A page of PaymentIntents."""
    where = ("customer", params["customer"]) if "customer" in params else None
    if "customer" in params:
        # What Stripe lists of a customer who was deleted is documented nowhere; nobody may rely on it.
        work.find(params["customer"], "customer", "customer")
    return page(work, "/v1/payment_intents", params, work.newest("payment_intent", where), "payment_intent")


def _require_amount(amount: int) -> None:
    if amount < MIN_CENTS:
        raise InvalidRequestError(
            "Amount must be at least $0.50 usd", code="amount_too_small", param="amount"
        )
    if amount > MAX_CENTS:
        raise InvalidRequestError(
            "Amount must be no more than $999,999.99", code="amount_too_large", param="amount"
        )


def _intent(work: Work, params: Json, currency: str) -> Json:
    intent_id = new_id("pi")
    return {
        "id": intent_id,
        "object": "payment_intent",
        "amount": params["amount"],
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        **accepted_methods(params),
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": params.get("capture_method", "automatic_async"),
        "client_secret": new_secret(intent_id),
        "confirmation_method": "automatic",
        "created": work.now,
        "currency": currency,
        "customer": params.get("customer"),
        "customer_account": None,
        "description": params.get("description"),
        "excluded_payment_method_types": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "managed_payments": {"enabled": False},
        "metadata": changed_metadata({}, params.get("metadata", {})),
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": {
            "card": {
                "installments": None,
                "mandate_options": None,
                "network": None,
                "request_three_d_secure": "automatic",
            }
        },
        "presentment_details": None,
        "processing": None,
        "receipt_email": params.get("receipt_email"),
        "review": None,
        "setup_future_usage": params.get("setup_future_usage"),
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": params.get("statement_descriptor_suffix"),
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": None,
        PRIVATE: {"off_session": False},
    }
