"""What settling came to: told to the caller, shown to operators, counted in metrics."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from db.attempts.attempts import Attempt
from db.attempts.reload_rule import Reloads
from db.ledger.post_calls import BalanceChange


class Outcome(StrEnum):
    """What settling came to. Those after `known` were not booked, or not wholly, and why."""

    CREDITED = "credited"
    CHANGED = "changed"
    """The attempt, or what was refunded or disputed."""
    KNOWN = "known"
    """There was nothing that wasn't known."""
    UNKNOWN_INTENT = "unknown_intent"
    UNKNOWN_ORG = "unknown_org"
    FOREIGN_CUSTOMER = "foreign_customer"
    FOREIGN_CURRENCY = "foreign_currency"
    WRONG_LIVEMODE = "wrong_livemode"
    WRONG_AMOUNT = "wrong_amount"
    SECOND_INTENT = "second_intent"
    CREDITED_ELSEWHERE = "credited_elsewhere"
    """To another org, by a version of this program that believed metadata."""


NOT_BOOKED: Final = frozenset(Outcome) - {Outcome.CREDITED, Outcome.CHANGED, Outcome.KNOWN}


@dataclass(slots=True)
class Settled:
    """What settling did. All of it is committed with the caller's transaction."""

    outcome: Outcome
    attempt: Attempt | None = None
    """As it is now."""
    change: BalanceChange | None = None
    """The balance, if it changed."""
    reloads: Reloads = field(default_factory=Reloads)
    declined: str | None = None
    """The code by which the card was declined, if that is news."""
    ended: bool = False
    """Whether it was this that ended the attempt."""
    displaced: bool = False
    """Whether its own attempt has taken it back from one that metadata had named, or two have come of one attempt."""
    metadata_differ: bool = False
    """Whether the PaymentIntent's metadata name another org or attempt: they were edited at Stripe, and nothing follows them."""
