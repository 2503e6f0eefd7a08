"""Money that went back to a card, by refund or dispute, and what of it came again: booked once each."""

from collections.abc import Sequence

from db.attempts.attempts import Attempt
from db.ledger.postings import is_posted, post
from db.models import Kind
from db.payments.locked_org import LockedOrg
from db.payments.reload_pauses import pause_for_lost_money
from db.payments.settlement_outcome import Outcome
from metering.rules.payments import Dispute, Intent, Refund
from metering.rules.reloads import DISPUTED, REFUNDED


def book_reversals(
    org: LockedOrg, refunds: Sequence[Refund], disputes: Sequence[Dispute], intent: Intent, attempt: Attempt
) -> Outcome | None:
    """Book what went back to the card, once per refund and dispute, and what came again; tell why something was not.

    The credit is there already.
    """
    for refund in sorted(refunds, key=lambda each: each.id):
        # One that has failed before we heard of it is booked all the same: an older reading, in which it has not failed yet,
        # may still be on its way here, and must find it done.
        new = _book(org, Kind.REFUND, -refund.amount_cents, "Refund", refund.id, intent)
        if not refund.effective:
            key = f"failed:{refund.id}"
            _book(org, Kind.ADJUSTMENT, refund.amount_cents, "Refund failed, money returned", key, intent)
        elif new:
            pause_for_lost_money(org, REFUNDED, attempt)
    for dispute in sorted(disputes, key=lambda each: each.id):
        if dispute.foreign:
            continue  # what it comes to in USD somebody has to say
        if dispute.withdrawn and _book(
            org, Kind.REFUND, -dispute.amount_cents, "Dispute, funds withdrawn", dispute.id, intent
        ):
            pause_for_lost_money(org, DISPUTED, attempt)
        if dispute.reinstated:
            _book(
                org,
                Kind.ADJUSTMENT,
                dispute.amount_cents,
                "Dispute won, money returned",
                f"won:{dispute.id}",
                intent,
            )
    return Outcome.FOREIGN_CURRENCY if any(each.foreign for each in disputes) else None


def _book(
    org: LockedOrg, kind: Kind, amount_cents: int, description: str, source_key: str, intent: Intent
) -> bool:
    if is_posted(org.connection, org.account.org_id, kind, source_key):
        return False
    post(
        org.connection,
        org.account,
        kind=kind,
        amount_cents=amount_cents,
        description=description,
        source_key=source_key,
        metadata={"payment_intent_id": intent.id},
    )
    return True
