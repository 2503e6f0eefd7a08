"""Refunds: money that goes back to the card. It leaves when the refund is made, and comes back if that fails."""

from typing import Final

from metering.sandbox.stripe.balance import record
from metering.sandbox.stripe.cards import AfterCharge, Card, card_for_number
from metering.sandbox.stripe.charges import successful_charge
from metering.sandbox.stripe.disputes import close_dispute
from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import (
    EXPAND,
    LISTING,
    Choice,
    Hash,
    Integer,
    Metadata,
    Text,
    changed_metadata,
)
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json, new_id, shown

CREATE: Final = Hash(
    {
        **EXPAND,
        "amount": Integer(1),
        "charge": Text(),
        "payment_intent": Text(),
        "metadata": Metadata(),
        "reason": Choice(("duplicate", "fraudulent", "requested_by_customer")),
    }
)
RETRIEVE: Final = Hash(EXPAND)
UPDATE: Final = Hash({**EXPAND, "metadata": Metadata()})
LIST: Final = Hash({**LISTING, "charge": Text(), "payment_intent": Text()})

HOLDS_MONEY: Final = {"pending", "succeeded", "requires_action"}
"""The statuses of a refund whose money has left."""


def create(work: Work, params: Json) -> Json:
    """Refund a charge, or what `amount` says of it."""
    charge = _charge_of(work, params)
    left = charge["amount"] - charge["amount_refunded"]
    if left == 0:
        raise InvalidRequestError(
            f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded"
        )
    dispute = next(work.newest("dispute", ("charge", charge["id"])), None)
    if dispute is not None and not dispute["is_charge_refundable"] and dispute["status"] != "won":
        raise InvalidRequestError(
            f"Charge {charge['id']} has been charged back; cannot issue a refund.", code="charge_disputed"
        )
    amount = params.get("amount", left)
    if amount > left:
        raise InvalidRequestError(
            f"Refund amount (${amount / 100:.2f}) is greater than unrefunded amount on charge (${left / 100:.2f})",
            code="amount_too_large",
            param="amount",
        )
    sequel = _card_of(work, charge).after
    refund = work.add(_refund(work, charge, amount, params))
    if sequel is AfterCharge.REFUND_PENDS:
        refund["status"] = "pending"
    _take_off(work, charge, amount)
    if (
        dispute is not None
        and dispute["status"].startswith("warning_")
        and dispute["status"] != "warning_closed"
    ):
        close_dispute(work, dispute, won=False)
    work.emit("refund.created", refund)
    if sequel is AfterCharge.REFUND_FAILS:  # it is answered as succeeded, and fails right afterwards
        answered: Json = shown(refund)
        fail_refund(work, refund, "lost_or_stolen_card")
        return answered
    return refund


def retrieve(work: Work, params: Json, refund_id: str) -> Json:  # noqa: ARG001
    """A refund."""
    return work.find(refund_id, "refund", "id", in_path=True)


def update(work: Work, params: Json, refund_id: str) -> Json:
    """Change the metadata."""
    held = work.find(refund_id, "refund", "id", in_path=True)
    previous = {"metadata": shown(held["metadata"])}
    refund = work.edit(held)
    if "metadata" in params:
        refund["metadata"] = changed_metadata(refund["metadata"], params["metadata"])
    _tell_updated(work, refund, previous)
    return refund


def list_refunds(work: Work, params: Json) -> Json:
    """A page of refunds."""
    where = next(((name, params[name]) for name in ("payment_intent", "charge") if name in params), None)
    return page(work, "/v1/refunds", params, work.newest("refund", where), "refund")


def settle_refund(work: Work, refund: Json) -> Json:
    """A pending refund has arrived at the card."""
    if refund["status"] != "pending":
        raise InvalidRequestError(f"Refund {refund['id']} is not pending: {refund['status']}.")
    refund = work.edit(refund)
    refund["status"] = "succeeded"
    _tell_updated(work, refund, {"status": "pending"})
    return refund


def fail_refund(work: Work, refund: Json, reason: str) -> Json:
    """The bank could not pay a refund out, which it may find weeks later: the money comes back to the account."""
    if refund["status"] not in HOLDS_MONEY:
        raise InvalidRequestError(f"Refund {refund['id']} can't fail: {refund['status']}.")
    refund = work.edit(refund)
    previous = {name: refund[name] for name in ("status", "failure_reason", "failure_balance_transaction")}
    returned = record(
        work,
        "refund_failure",
        refund["amount"],
        source=refund["id"],
        description="REFUND FAILURE",
        currency=refund["currency"],
    )
    refund |= {
        "status": "failed",
        "failure_reason": reason,
        "failure_balance_transaction": returned["id"],
    }
    charge = work.edit(work.find(refund["charge"], "charge", "charge"))
    charge["amount_refunded"] -= refund["amount"]
    charge["refunded"] = False
    _tell_updated(work, refund, previous)
    work.emit("refund.failed", refund, previous=previous)
    return refund


def _charge_of(work: Work, params: Json) -> Json:
    if ("charge" in params) == ("payment_intent" in params):
        raise InvalidRequestError(
            "You must provide exactly one of these parameters: charge, payment_intent.",
            code="parameter_missing",
        )
    if "charge" in params:
        charge = work.find(params["charge"], "charge", "charge")
        if not charge["paid"]:
            raise InvalidRequestError(
                f"Charge {charge['id']} failed; there is nothing to refund.", param="charge"
            )
        return charge
    intent = work.find(params["payment_intent"], "payment_intent", "payment_intent")
    paid = successful_charge(work, intent["id"])
    if paid is None:
        raise InvalidRequestError(
            f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.",
            code="payment_intent_unexpected_state",
            param="payment_intent",
        )
    return paid


def _card_of(work: Work, charge: Json) -> Card:
    method = work.get(charge["payment_method"], "payment_method")
    card = card_for_number(method[PRIVATE]["number"]) if method is not None else None
    if card is None:
        raise LookupError(f"{charge['id']} is of a card that this version doesn't know")
    return card


def _take_off(work: Work, charge: Json, amount: int) -> None:
    charge = work.edit(charge)
    previous = {name: charge[name] for name in ("amount_refunded", "refunded")}
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    work.emit("charge.refunded", charge, previous=previous)


def _tell_updated(work: Work, refund: Json, previous: Json) -> None:
    work.emit("refund.updated", refund, previous=previous)
    work.emit("charge.refund.updated", refund, previous=previous)


def _refund(work: Work, charge: Json, amount: int, params: Json) -> Json:
    refund_id = new_id("re")
    taken = record(
        work,
        "refund",
        -amount,
        source=refund_id,
        description=f"REFUND FOR CHARGE ({charge['description'] or charge['id']})",
        currency=charge["currency"],
    )
    return {
        "id": refund_id,
        "object": "refund",
        "amount": amount,
        "balance_transaction": taken["id"],
        "charge": charge["id"],
        "created": work.now,
        "currency": charge["currency"],
        "customer": charge["customer"],
        "customer_account": None,
        "destination_details": {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "failure_balance_transaction": None,
        "failure_reason": None,
        "metadata": changed_metadata({}, params.get("metadata", {})),
        "payment_intent": charge["payment_intent"],
        "payment_method": charge["payment_method"],
        "reason": params.get("reason"),
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }
