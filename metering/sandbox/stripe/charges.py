"""Charges: what an attempt to take the money came to. The money's own trace are the balance transactions."""

from typing import Final

from metering.sandbox.stripe.balance import record
from metering.sandbox.stripe.cards import Decline
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import EXPAND, LISTING, Hash, Metadata, Text, changed_metadata
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json, copied, new_id, shown

RETRIEVE: Final = Hash(EXPAND)
LIST: Final = Hash({**LISTING, "payment_intent": Text(), "customer": Text()})
UPDATE: Final = Hash({**EXPAND, "metadata": Metadata(), "description": Text(unsettable=True)})


def retrieve(work: Work, params: Json, charge_id: str) -> Json:  # noqa: ARG001
    """A charge, failed ones too."""
    return work.find(charge_id, "charge", "id", in_path=True)


def list_charges(work: Work, params: Json) -> Json:
    """A page of charges."""
    where = next(((name, params[name]) for name in ("payment_intent", "customer") if name in params), None)

    def wanted(charge: Json) -> bool:
        return "customer" not in params or charge["customer"] == params["customer"]

    return page(work, "/v1/charges", params, work.newest("charge", where), "charge", keep=wanted)


def update(work: Work, params: Json, charge_id: str) -> Json:
    """Change what is only text."""
    held = work.find(charge_id, "charge", "id", in_path=True)
    before = shown(held)
    charge = work.edit(held)
    if "metadata" in params:
        charge["metadata"] = changed_metadata(charge["metadata"], params["metadata"])
    if "description" in params:
        charge["description"] = params["description"]
    previous = {name: old for name, old in before.items() if charge[name] != old}
    work.emit("charge.updated", charge, previous=previous)
    return charge


def make_charge(work: Work, intent: Json, method: Json, decline: Decline | None) -> Json:
    """Take the money of an intent from a card, or let the bank decline; tells it with an event."""
    charge = work.add(_charge(work, intent, method, decline))
    if decline is None:
        charge["balance_transaction"] = record(
            work,
            "charge",
            charge["amount"],
            source=charge["id"],
            description=charge["description"],
            currency=charge["currency"],
        )["id"]
    work.emit("charge.succeeded" if decline is None else "charge.failed", charge)
    return charge


def successful_charge(work: Work, intent_id: str) -> Json | None:
    """The charge that took an intent's money, if any did."""
    found = (each for each in work.newest("charge", ("payment_intent", intent_id)) if each["paid"])
    return next(found, None)


def _charge(work: Work, intent: Json, method: Json, decline: Decline | None) -> Json:
    paid = decline is None
    charge_id = new_id("ch")
    return {
        "id": charge_id,
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid else 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": None,
        "billing_details": copied(method["billing_details"]),
        "calculated_statement_descriptor": "STRIPE SANDBOX",
        "captured": paid,
        "created": work.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None if decline is None else decline.code,
        "failure_message": None if decline is None else decline.message,
        "fraud_details": {},
        "livemode": False,
        "metadata": copied(intent["metadata"]),
        "on_behalf_of": None,
        "outcome": _outcome(decline),
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": _details(intent, method),
        "presentment_details": None,
        "radar_options": {},
        "receipt_email": intent["receipt_email"],
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "succeeded" if paid else "failed",
        "transfer_data": None,
        "transfer_group": None,
    }


def _details(intent: Json, method: Json) -> Json:
    card = method["card"]
    shared = (
        "brand",
        "checks",
        "country",
        "exp_month",
        "exp_year",
        "fingerprint",
        "funding",
        "last4",
        "regulated_status",
        "wallet",
    )
    return {
        "card": {name: copied(card[name]) for name in shared}
        | {
            "amount_authorized": intent["amount"],
            "authorization_code": None,
            "extended_authorization": {"status": "disabled"},
            "incremental_authorization": {"status": "unavailable"},
            "installments": None,
            "mandate": None,
            "multicapture": {"status": "unavailable"},
            "network": card["brand"],
            "network_token": {"used": False},
            "network_transaction_id": None,
            "overcapture": {"maximum_amount_capturable": intent["amount"], "status": "unavailable"},
            "three_d_secure": None,
            "transaction_link_id": None,
        },
        "type": "card",
    }


def _outcome(decline: Decline | None) -> Json:
    if decline is None:
        return {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "risk_score": 20,
            "seller_message": "Payment complete.",
            "type": "authorized",
        }
    blocked = decline.decline_code == "fraudulent"
    return {
        "advice_code": None,
        "network_advice_code": None,
        "network_decline_code": None,
        "network_status": "not_sent_to_network" if blocked else "declined_by_network",
        "reason": "highest_risk_level" if blocked else decline.decline_code or decline.code,
        "risk_level": "highest" if blocked else "normal",
        "risk_score": 95 if blocked else 20,
        "seller_message": "Stripe blocked this payment as too risky." if blocked else "The bank declined.",
        "type": "blocked" if blocked else "issuer_declined",
    }
