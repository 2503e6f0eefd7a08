"""Payment methods: cards, as a customer has given them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from metering.sandbox.stripe.cards import Card, card_for_number, card_for_token, card_shape, decline_for
from metering.sandbox.stripe.errors import DeclinedError, InvalidRequestError, StripeError
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import (
    EXPAND,
    PAGING,
    Choice,
    Hash,
    Integer,
    Metadata,
    Param,
    Text,
    changed_metadata,
)
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json, new_id, shown

_BILLING_DETAILS: Final = Hash(
    {
        "address": Hash(
            {
                name: Text(unsettable=True)
                for name in ("city", "country", "line1", "line2", "postal_code", "state")
            }
        ),
        "email": Text(unsettable=True),
        "name": Text(unsettable=True),
        "phone": Text(unsettable=True),
    }
)
_CARD: Final = Hash(
    {
        "token": Text(),
        "number": Text(),
        "exp_month": Integer(1, 12),
        "exp_year": Integer(2000, 2100),
        "cvc": Text(4),
    }
)
_ALLOW_REDISPLAY: Final = Choice(("always", "limited", "unspecified"))

CREATE: Final = Hash(
    {
        **EXPAND,
        "type": Choice(("card",)),
        "card": _CARD,
        "billing_details": _BILLING_DETAILS,
        "metadata": Metadata(),
        "allow_redisplay": _ALLOW_REDISPLAY,
    },
    frozenset({"type"}),
)
UPDATE: Final = Hash(
    {
        **EXPAND,
        "billing_details": _BILLING_DETAILS,
        "metadata": Metadata(),
        "allow_redisplay": _ALLOW_REDISPLAY,
        "card": Hash({"exp_month": Integer(1, 12), "exp_year": Integer(2000, 2100)}),
    }
)
ATTACH: Final = Hash({**EXPAND, "customer": Text()}, frozenset({"customer"}))
_TYPE: Final[dict[str, Param]] = {"type": Choice(("card",)), "allow_redisplay": _ALLOW_REDISPLAY}
LIST: Final = Hash({**PAGING, **_TYPE, "customer": Text()})
LIST_OF_CUSTOMER: Final = Hash({**PAGING, **_TYPE})


def create(work: Work, params: Json) -> Json:
    """Make a payment method of a test card, given by its number or token."""
    data = params.get("card", {})
    if "number" in data:
        card = card_for_number(data["number"])
        if card is None:
            decline = decline_for("incorrect_number")
            raise DeclinedError(decline.message, code=decline.code, param="number")
    elif "token" in data:
        card = card_for_token(data["token"])
        if card is None:
            raise InvalidRequestError(
                f"No such token: '{data['token']}'", code="resource_missing", param="card[token]"
            )
    else:
        raise InvalidRequestError("Missing required param: card.", code="parameter_missing", param="card")
    return make(work, card, data, params)


def retrieve(work: Work, params: Json, method_id: str) -> Json:  # noqa: ARG001
    """A payment method; a test token is a new one every time."""
    return found(work, method_id, "payment_method", in_path=True)


def update(work: Work, params: Json, method_id: str) -> Json:
    """Change what may change: how it is shown, whose it is said to be, and until when it is good."""
    held = work.find(method_id, "payment_method", "payment_method", in_path=True)
    if held["customer"] is None:
        raise InvalidRequestError(
            "You must save this PaymentMethod to a customer before you can update it.", param="payment_method"
        )
    before = shown(held)
    method = work.edit(held)
    if "metadata" in params:
        method["metadata"] = changed_metadata(method["metadata"], params["metadata"])
    if "allow_redisplay" in params:
        method["allow_redisplay"] = params["allow_redisplay"]
    _bill_to(method, params.get("billing_details", {}))
    method["card"] |= params.get("card", {})
    previous = {name: old for name, old in before.items() if method[name] != old}
    work.emit("payment_method.updated", method, previous=previous)
    return method


def attach(work: Work, params: Json, method_id: str) -> Json:
    """Save a payment method to a customer. A card that the bank declines can't be."""
    work.find(params["customer"], "customer", "customer")
    return attach_to(work, method_id, params["customer"], in_path=True)


def detach(work: Work, params: Json, method_id: str) -> Json:  # noqa: ARG001
    """Take a payment method from its customer, for good."""
    method = work.find(method_id, "payment_method", "payment_method", in_path=True)
    if method["customer"] is None:
        raise InvalidRequestError(
            "The payment method you provided is not attached to a customer so detachment is impossible.",
            param="payment_method",
        )
    return detach_from_customer(work, method)


def list_methods(work: Work, params: Json) -> Json:
    """A page of a customer's."""
    if "customer" not in params:  # Stripe lists only Treasury's without one
        return page(work, "/v1/payment_methods", params, iter(()), "payment_method")
    work.find(params["customer"], "customer", "customer")
    return page(work, "/v1/payment_methods", params, attached_to(work, params["customer"]), "payment_method")


def list_of_customer(work: Work, params: Json, customer_id: str) -> Json:
    """A page of a customer's, by the customer's own address."""
    work.find(customer_id, "customer", "customer", in_path=True)
    url = f"/v1/customers/{customer_id}/payment_methods"
    return page(work, url, params, attached_to(work, customer_id), "payment_method")


def retrieve_of_customer(work: Work, params: Json, customer_id: str, method_id: str) -> Json:  # noqa: ARG001
    """One of a customer's."""
    work.find(customer_id, "customer", "customer", in_path=True)
    method = work.find(method_id, "payment_method", "payment_method", in_path=True)
    if method["customer"] != customer_id:
        raise StripeError(
            404,
            "invalid_request_error",
            f"The customer does not have a payment method with the ID {method_id}. "
            "The payment method must be attached to the customer.",
            code="resource_missing",
            param="payment_method",
        )
    return method


def make(work: Work, card: Card, data: Json, params: Json) -> Json:
    """A new payment method of a test card, that is nobody's yet."""
    today = datetime.fromtimestamp(work.now, UTC)
    method = work.add(
        {
            "id": new_id("pm"),
            "object": "payment_method",
            "allow_redisplay": params.get("allow_redisplay", "unspecified"),
            "billing_details": {
                "address": dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")),
                "email": None,
                "name": None,
                "phone": None,
                "tax_id": None,
            },
            "card": card_shape(
                card, data.get("exp_month", today.month), data.get("exp_year", today.year + 1)
            ),
            "created": work.now,
            "customer": None,
            "customer_account": None,
            "livemode": False,
            "metadata": changed_metadata({}, params.get("metadata", {})),
            "type": "card",
            PRIVATE: {"number": card.number, "set_up": False, "spent": False, "decline": None, "slow": False},
        }
    )
    _bill_to(method, params.get("billing_details", {}))
    return method


def found(work: Work, method_id: str, param: str, *, in_path: bool = False) -> Json:
    """A payment method by id; a test token such as `pm_card_visa` becomes a new one. Raises StripeError."""
    card = card_for_token(method_id) if method_id.startswith("pm_card_") else None
    if card is not None:
        return make(work, card, {}, {})
    return work.find(method_id, "payment_method", param, in_path=in_path)


def find_method(work: Work, method_id: str) -> Json:
    """A payment method that a control names. Raises StripeError."""
    return work.find(method_id, "payment_method", "payment_method")


def update_automatically(
    work: Work, method: Json, card: str | None, exp_month: int | None, exp_year: int | None
) -> Json:
    """Update a saved card as its network tells Stripe to: the same payment method, with another date or number.

    Raises InvalidRequestError for one that isn't saved, or if there is nothing to update.
    """
    if method["customer"] is None:
        raise InvalidRequestError(f"{method['id']} is no customer's: only saved cards are updated.")
    if card is None and exp_month is None and exp_year is None:
        raise InvalidRequestError("Name what is new: exp_month, exp_year or card.")
    before = shown(method)
    method = work.edit(method)
    if card is not None:
        issued = card_for_number(card) or card_for_token(card)
        if issued is None:
            raise InvalidRequestError(f"There is no test card {card!r}.")
        held = method["card"]
        fresh = card_shape(issued, held["exp_month"], held["exp_year"])
        method["card"] = fresh | {"checks": held["checks"]}
        method[PRIVATE] |= {"number": issued.number, "decline": None}
    elif method[PRIVATE]["decline"] == "expired_card":
        method[PRIVATE]["decline"] = None
    dates = {"exp_month": exp_month, "exp_year": exp_year}
    method["card"] |= {name: value for name, value in dates.items() if value is not None}
    work.emit("payment_method.automatically_updated", method, previous=before)
    return method


def card_of(method: Json) -> Card:
    """The test card behind a payment method."""
    card = card_for_number(method[PRIVATE]["number"])
    if card is None:
        raise LookupError(f"{method['id']} is of a card that this version doesn't know")
    return card


def attached_to(work: Work, customer_id: str) -> Iterator[Json]:
    """A customer's payment methods, newest first."""
    return work.newest("payment_method", ("customer", customer_id))


def attach_to(work: Work, method_id: str, customer_id: str, *, in_path: bool = False) -> Json:
    """Save a payment method to a customer. Raises DeclinedError for a card that the bank declines."""
    method = found(work, method_id, "payment_method", in_path=in_path)
    if method["customer"] is not None:
        raise InvalidRequestError(
            "The payment method you provided has already been attached to a customer.", param="payment_method"
        )
    require_fresh(method)
    card = card_of(method)
    if card.decline and not card.attaches:
        decline = decline_for(card.decline)
        raise DeclinedError(decline.message, code=decline.code, decline_code=decline.decline_code)
    return save(work, method, customer_id)


def save(work: Work, method: Json, customer_id: str) -> Json:
    """Make a payment method a customer's, whom nothing stands against."""
    method = work.edit(method)
    method["customer"] = customer_id
    method["card"]["checks"]["cvc_check"] = "pass"
    work.emit("payment_method.attached", method)
    return method


def detach_from_customer(work: Work, method: Json) -> Json:
    """Take a payment method from its customer; if it was the default for invoices, there is none any more."""
    customer_id = method["customer"]
    method = release(work, method)
    work.emit("payment_method.detached", method, previous={"customer": customer_id})
    customer = work.get(customer_id, "customer")
    if customer and customer["invoice_settings"]["default_payment_method"] == method["id"]:
        customer = work.edit(customer)
        before: Any = shown(customer["invoice_settings"])
        customer["invoice_settings"]["default_payment_method"] = None
        work.emit("customer.updated", customer, previous={"invoice_settings": before})
    return method


def release(work: Work, method: Json) -> Json:
    """Take a payment method from its customer without a word."""
    method = work.edit(method)
    method["customer"] = None
    method[PRIVATE]["spent"] = True
    return method


def require_fresh(method: Json) -> None:
    """Refuse one that was used or detached: it may be used once without a customer, and never again."""
    if method["customer"] is None and method[PRIVATE]["spent"]:
        raise InvalidRequestError(
            "This PaymentMethod was previously used without being attached to a Customer or was detached from a Customer, "
            "and may not be used again.",
            param="payment_method",
        )


def require_usable(method: Json, customer_id: str | None) -> None:
    """Refuse a payment method that an intent of this customer (or of none) can't use."""
    require_fresh(method)
    if method["customer"] is None or method["customer"] == customer_id:
        return
    if customer_id is None:
        raise InvalidRequestError(
            f"The provided PaymentMethod ({method['id']}) is attached to a Customer. To use it, you must also provide that "
            "Customer.",
            param="payment_method",
        )
    raise InvalidRequestError(
        f"The PaymentMethod {method['id']} does not belong to the Customer {customer_id}. "
        "Please use this PaymentMethod with the Customer that it belongs to instead.",
        param="payment_method",
    )


def _bill_to(method: Json, details: Json) -> None:
    held = method["billing_details"]
    held["address"] |= details.get("address", {})
    held |= {name: value for name, value in details.items() if name != "address"}
