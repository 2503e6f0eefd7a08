"""What objects had not that were kept by earlier versions: filled in when a file is read, so that all answers are alike."""

from collections.abc import Callable
from typing import Final

from metering.sandbox.stripe.evidence import EVIDENCE
from metering.sandbox.stripe.values import Json, copied

_ADDED: Final[dict[str, Json]] = {
    "charge": {"source": None},
    "payment_intent": {"customer_account": None, "managed_payments": {"enabled": False}},
    "payment_method": {"customer_account": None},
    "refund": {"customer_account": None},
}
"""By kind, fields that are the same in all objects of earlier versions."""


def upgraded(value: Json, peek: Callable[[str], Json | None]) -> Json:
    """A stored object, which is changed, with the fields of today. `peek` finds those that were made before it."""
    kind = value["object"]
    for name, default in _ADDED.get(kind, {}).items():
        value.setdefault(name, copied(default))
    if kind == "charge":
        _charge(value)
    elif kind == "refund":
        charge = peek(value["charge"]) or {}
        for name in ("customer", "payment_method"):
            value.setdefault(name, charge.get(name))
    elif kind == "dispute":
        value["evidence"] = dict.fromkeys(EVIDENCE) | value["evidence"]
    elif kind == "event":
        upgraded(value["data"]["object"], peek)
    return value


def _charge(charge: Json) -> None:
    unavailable = {"status": "unavailable"}
    charge["payment_method_details"]["card"] = {
        "extended_authorization": {"status": "disabled"},
        "incremental_authorization": unavailable,
        "multicapture": copied(unavailable),
        "network_token": {"used": False},
        "network_transaction_id": None,
        "overcapture": {"maximum_amount_capturable": charge["amount"], **unavailable},
        "regulated_status": "unregulated",
        "transaction_link_id": None,
        **charge["payment_method_details"]["card"],
    }
