"""Customers."""

from typing import Any, Final

from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import EXPAND, LISTING, Hash, Metadata, Param, Text, changed_metadata
from metering.sandbox.stripe.payment_methods import attach_to, attached_to, release
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json, new_id, shown

_FIELDS: Final[dict[str, Param]] = {
    **EXPAND,
    "description": Text(unsettable=True),
    "email": Text(512, unsettable=True),
    "invoice_settings": Hash({"default_payment_method": Text(unsettable=True)}),
    "metadata": Metadata(),
    "name": Text(256, unsettable=True),
    "phone": Text(20, unsettable=True),
}
CREATE: Final = Hash({**_FIELDS, "payment_method": Text()})
UPDATE: Final = Hash(_FIELDS)
LIST: Final = Hash({**LISTING, "email": Text()})

_PLAIN: Final = ("description", "email", "name", "phone")


def create(work: Work, params: Json) -> Json:
    """Make a customer; a `payment_method` given is attached."""
    customer = work.add(
        {
            "id": new_id("cus", 14),
            "object": "customer",
            "address": None,
            "balance": 0,
            "created": work.now,
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": None,
            "discount": None,
            "email": None,
            "invoice_prefix": new_id("", 8)[1:].upper(),
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "livemode": False,
            "metadata": changed_metadata({}, params.get("metadata", {})),
            "name": None,
            "next_invoice_sequence": 1,
            "phone": None,
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
        }
    )
    customer |= {name: params[name] for name in _PLAIN if name in params}
    if "payment_method" in params:
        attach_to(work, params["payment_method"], customer["id"])
    _set_default(work, customer, params)
    work.emit("customer.created", customer)
    return customer


def retrieve(work: Work, params: Json, customer_id: str) -> Json:  # noqa: ARG001
    """A customer; a deleted one too, as Stripe shows it."""
    held = work.get(customer_id, "customer")
    return held if held is not None else work.find(customer_id, "customer", "id", in_path=True)


def update(work: Work, params: Json, customer_id: str) -> Json:
    """Change the fields given."""
    held = work.find(customer_id, "customer", "id", in_path=True)
    before = shown(held)
    customer = work.edit(held)
    customer |= {name: params[name] for name in _PLAIN if name in params}
    if "metadata" in params:
        customer["metadata"] = changed_metadata(customer["metadata"], params["metadata"])
    _set_default(work, customer, params)
    emit_updated(work, customer, before)
    return customer


def delete(work: Work, params: Json, customer_id: str) -> Json:  # noqa: ARG001
    """Delete a customer for good: the payment methods are detached, of which no event tells; the rest of the history stays."""
    held = work.find(customer_id, "customer", "id", in_path=True)
    for method in list(attached_to(work, customer_id)):
        release(work, method)
    work.emit("customer.deleted", held)
    return work.add({"id": customer_id, "object": "customer", "deleted": True})


def list_customers(work: Work, params: Json) -> Json:
    """A page of those that are not deleted."""
    where = ("email", params["email"]) if "email" in params else None
    newest = (each for each in work.newest("customer", where) if not each.get("deleted"))
    return page(work, "/v1/customers", params, newest, "customer")


def emit_updated(work: Work, customer: Json, before: Json) -> None:
    """Tell what is different from `before`, if anything is."""
    previous: dict[str, Any] = {name: old for name, old in before.items() if customer[name] != old}
    if previous:
        work.emit("customer.updated", customer, previous=previous)


def _set_default(work: Work, customer: Json, params: Json) -> None:
    settings = params.get("invoice_settings", {})
    if "default_payment_method" not in settings:
        return
    method_id = settings["default_payment_method"]
    if method_id is not None:
        method = work.get(method_id, "payment_method")
        if method is None or method["customer"] != customer["id"]:
            raise InvalidRequestError(
                f"The customer does not have a payment method with the ID {method_id}. "
                "The payment method must be attached to the customer.",
                code="resource_missing",
                param="invoice_settings[default_payment_method]",
            )
    customer["invoice_settings"]["default_payment_method"] = method_id
