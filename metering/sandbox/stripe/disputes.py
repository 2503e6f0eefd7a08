"""Disputes: a cardholder wants the money back from the bank. A real one takes it at once, an inquiry takes nothing."""

from typing import Final

from metering.sandbox.stripe.balance import record, record_dispute
from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.evidence import EVIDENCE, PARAMS
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import EXPAND, LISTING, Boolean, Hash, Metadata, Text, changed_metadata
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json, new_id, shown

RETRIEVE: Final = Hash(EXPAND)
LIST: Final = Hash({**LISTING, "charge": Text(), "payment_intent": Text()})
UPDATE: Final = Hash(
    {
        **EXPAND,
        "evidence": PARAMS,
        "metadata": Metadata(),
        "submit": Boolean(),
    }
)

WINNING_EVIDENCE: Final = "winning_evidence"
LOSING_EVIDENCE: Final = "losing_evidence"
"""Stripe's test evidence: submitted, it decides a dispute."""

ANSWER_S: Final = 7 * 24 * 60 * 60
"""How long there is to answer a dispute."""

_OPEN: Final = {"needs_response", "under_review"}
_INQUIRY: Final = {"warning_needs_response", "warning_under_review"}


def retrieve(work: Work, params: Json, dispute_id: str) -> Json:  # noqa: ARG001
    """A dispute."""
    return work.find(dispute_id, "dispute", "id", in_path=True)


def list_disputes(work: Work, params: Json) -> Json:
    """A page of disputes."""
    where = next(((name, params[name]) for name in ("payment_intent", "charge") if name in params), None)
    return page(work, "/v1/disputes", params, work.newest("dispute", where), "dispute")


def update(work: Work, params: Json, dispute_id: str) -> Json:
    """Give evidence. Submitted, `winning_evidence` and `losing_evidence` decide at once, as at Stripe; others are reviewed."""
    held = work.find(dispute_id, "dispute", "id", in_path=True)
    _require_open(held, "respond to")
    before = shown(held)
    dispute = work.edit(held)
    text = params.get("evidence", {}).get("uncategorized_text")
    if "evidence" in params:
        dispute["evidence"] |= params["evidence"]
        dispute["evidence_details"]["has_evidence"] = True
    if "metadata" in params:
        dispute["metadata"] = changed_metadata(dispute["metadata"], params["metadata"])
    if "evidence" in params and params.get("submit", True):
        dispute["evidence_details"]["submission_count"] += 1
        dispute["evidence_details"]["submission_method"] = "manual"
        dispute["status"] = "under_review" if dispute["status"] in _OPEN else "warning_under_review"
    work.emit("charge.dispute.updated", dispute, previous=before)
    if dispute["status"] == "under_review" and text in {WINNING_EVIDENCE, LOSING_EVIDENCE}:
        close_dispute(work, dispute, won=text == WINNING_EVIDENCE)
    return dispute


def close(work: Work, params: Json, dispute_id: str) -> Json:  # noqa: ARG001
    """Give in: the dispute is lost."""
    held = work.find(dispute_id, "dispute", "id", in_path=True)
    _require_open(held, "close")
    return close_dispute(work, held, won=False)


def open_dispute(
    work: Work,
    charge: Json,
    *,
    amount: int | None = None,
    reason: str = "fraudulent",
    inquiry: bool = False,
    currency: str | None = None,
) -> Json:
    """A cardholder disputes a charge, or `amount` cents of it. Raises InvalidRequestError where that isn't left.

    `currency` is the dispute's, where it isn't the charge's.
    """
    amount = charge["amount"] - charge["amount_refunded"] if amount is None else amount
    if (
        not charge["paid"]
        or charge["disputed"]
        or not 0 < amount <= charge["amount"] - charge["amount_refunded"]
    ):
        raise InvalidRequestError(f"Charge {charge['id']} can't be disputed for {amount} cents.")
    charge = work.edit(charge)
    charge["disputed"] = True
    dispute = work.add(_dispute(work, charge, amount, reason) | ({"currency": currency} if currency else {}))
    if inquiry:
        dispute |= {"status": "warning_needs_response", "is_charge_refundable": True}
        dispute["payment_method_details"]["card"]["case_type"] = "inquiry"
        work.emit("charge.dispute.created", dispute)
        return dispute
    _withdraw(work, dispute)
    work.emit("charge.dispute.created", dispute)
    work.emit("charge.dispute.funds_withdrawn", dispute)
    return dispute


def escalate(work: Work, dispute: Json) -> Json:
    """An inquiry becomes a real dispute: now the money goes."""
    if dispute["status"] not in _INQUIRY:
        raise InvalidRequestError(f"Dispute {dispute['id']} is no open inquiry: {dispute['status']}.")
    before = shown(dispute)
    dispute = work.edit(dispute)
    dispute |= {"status": "needs_response", "is_charge_refundable": False}
    dispute["payment_method_details"]["card"]["case_type"] = "chargeback"
    _withdraw(work, dispute)
    work.emit("charge.dispute.updated", dispute, previous=before)
    work.emit("charge.dispute.funds_withdrawn", dispute)
    return dispute


def close_dispute(work: Work, dispute: Json, *, won: bool) -> Json:
    """The bank decides; an inquiry just ends. Won, the money comes back."""
    _require_open(dispute, "close")
    before = shown(dispute)
    dispute = work.edit(dispute)
    real = dispute["status"] in _OPEN
    if not real:
        dispute["status"] = "warning_closed"
    else:
        dispute["status"] = "won" if won else "lost"
        if won:
            dispute["balance_transactions"].append(
                record(
                    work,
                    "dispute_reversal",
                    dispute["amount"],
                    source=dispute["id"],
                    description=f"Chargeback reversal for {dispute['charge']}",
                    currency=dispute["currency"],
                )
            )
    work.emit("charge.dispute.closed", dispute, previous=before)
    if real and won:
        work.emit("charge.dispute.funds_reinstated", dispute)
    return dispute


def withdrawn_cents(dispute: Json) -> int:
    """What a dispute has taken and not given back, in its own currency, whatever the account settles in."""
    entries = {each["reporting_category"] for each in dispute["balance_transactions"]}
    amount: int = dispute["amount"]
    return amount if "dispute" in entries and "dispute_reversal" not in entries else 0


def _withdraw(work: Work, dispute: Json) -> None:
    dispute["balance_transactions"] += record_dispute(work, dispute)


def _require_open(dispute: Json, verb: str) -> None:
    if dispute["status"] not in _OPEN | _INQUIRY:
        raise InvalidRequestError(
            f"You cannot {verb} this dispute: it is already closed, with status {dispute['status']}."
        )


def _dispute(work: Work, charge: Json, amount: int, reason: str) -> Json:
    return {
        "id": new_id("du"),
        "object": "dispute",
        "amount": amount,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": work.now,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {**dict.fromkeys(EVIDENCE), "enhanced_evidence": {}},
        "evidence_details": {
            "due_by": work.now + ANSWER_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "network_reason_code": "10.4" if reason == "fraudulent" else "13.1",
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {
                "brand": charge["payment_method_details"]["card"]["brand"],
                "case_type": "chargeback",
                "network": charge["payment_method_details"]["card"]["network"],
                "network_reason_code": "10.4" if reason == "fraudulent" else "13.1",
            },
            "type": "card",
        },
        "reason": reason,
        "status": "needs_response",
    }
