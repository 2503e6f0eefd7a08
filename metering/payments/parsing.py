"""Reading Stripe's objects: from its JSON to values of ours."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from metering.rules.cards import card_identity
from metering.rules.payments import AttemptKind, Decline, Dispute, Intent, Refund
from metering.rules.reloads import AUTHENTICATION_REQUIRED

_T = TypeVar("_T")

MAX_ORG_ID: Final = 2**63 - 1

# Reporting categories of balance transactions (docs.stripe.com/reports/reporting-categories); fees and corrections have others.
_WITHDRAWAL: Final = "dispute"
_REVERSAL: Final = "dispute_reversal"


def read_intent(found: Mapping[str, Any]) -> Intent:
    """A PaymentIntent. Of its metadata each that is missing, or none of ours, is None."""
    metadata = found.get("metadata") or {}
    org_id, attempt_id, kind = _ours(metadata)
    return Intent(
        id=found["id"],
        status=found["status"],
        amount_cents=found["amount"],
        received_cents=found.get("amount_received") or 0,
        currency=found["currency"],
        livemode=bool(found.get("livemode")),
        created_at=datetime.fromtimestamp(found["created"], UTC),
        customer_id=_id(found.get("customer")),
        payment_method_id=_id(found.get("payment_method")) or _failed_method(found),
        org_id=org_id,
        attempt_id=attempt_id,
        kind=kind,
        decline=_decline(found.get("last_payment_error")),
        client_secret=found.get("client_secret"),
    )


def read_refund(found: Mapping[str, Any]) -> Refund:
    """A refund."""
    return Refund(found["id"], found["amount"], found["status"])


def read_dispute(found: Mapping[str, Any]) -> Dispute:
    """A dispute: what Stripe has booked for it says whether money went and came back, and never how much.

    These entries are in the currency that the account settles in, with fees and corrections of their own; the dispute's amount is
    in that of the charge.
    """
    signs = {
        (entry["reporting_category"], entry["amount"] < 0)
        for entry in found.get("balance_transactions") or []
    }
    return Dispute(
        found["id"],
        amount_cents=found["amount"],
        currency=found["currency"],
        withdrawn=(_WITHDRAWAL, True) in signs,
        reinstated=(_REVERSAL, False) in signs,
    )


def _ours(metadata: Mapping[str, Any]) -> tuple[int | None, UUID | None, AttemptKind | None]:
    org_id = _parsed(metadata.get("org_id"), int)
    return (
        org_id if org_id is not None and 1 <= org_id <= MAX_ORG_ID else None,
        _parsed(metadata.get("attempt_id"), UUID),
        _parsed(metadata.get("attempt_kind"), AttemptKind),
    )


def _parsed(value: str | None, kind: Callable[[str], _T]) -> _T | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        return None


def _id(value: Any) -> str | None:
    """An id, also of an object that was expanded."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if isinstance(value, str) else None


def _failed_method(found: Mapping[str, Any]) -> str | None:
    """After a decline the intent has no payment method any more; its error still names it."""
    error = found.get("last_payment_error")
    return _id(error.get("payment_method")) if isinstance(error, Mapping) else None


def read_card(card: Mapping[str, Any]) -> str | None:
    """The identity of a payment method's card; None where Stripe doesn't tell its fingerprint."""
    fingerprint = card.get("fingerprint")
    return card_identity(fingerprint, card["exp_month"], card["exp_year"]) if fingerprint else None


def _decline(error: Mapping[str, Any] | None) -> Decline | None:
    if not error:
        return None
    code = error.get("code") or error.get("type") or "declined"
    # `authentication_required` stands in `code`, whatever the bank says beside it; a bank's reason for a no in `decline_code`.
    method = error.get("payment_method")
    card = method.get("card") if isinstance(method, Mapping) else None
    return Decline(
        code if code == AUTHENTICATION_REQUIRED else error.get("decline_code") or code,
        error.get("message") or "The card was declined.",
        read_card(card) if isinstance(card, Mapping) else None,
    )
