"""What can be known of a charge: attempts, PaymentIntents, refunds and disputes, as values."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

from metering.rules.refusals import Concern

CURRENCY: Final = "usd"
MIN_CHARGE_CENTS: Final = 50
"""Stripe takes no smaller charge in USD."""
MAX_CHARGE_CENTS: Final = 99_999_999
"""Nor a larger one."""
MIN_TOP_UP_CENTS: Final = 500
"""The smallest top-up, unless configured otherwise (docs/reference/http-api.md#top-ups)."""


_BOOKED_BY_HAND: Final = UUID("8a3ad1fb-4f0e-4d0c-9a53-6f0b0d3b0c55")


def booked_attempt_id(payment_intent_id: str) -> UUID:
    """The id of the attempt that stands for a payment which an operator has booked: no metadata at Stripe name it."""
    return uuid5(_BOOKED_BY_HAND, payment_intent_id)


class AttemptKind(StrEnum):
    """Who makes a charge: the customer, or the system."""

    TOP_UP = "top_up"
    AUTO_RELOAD = "auto_reload"


class AttemptStatus(StrEnum):
    """What became of an attempt. Only `open` may still change, and a failed or cancelled one whose money came all the same."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class IntentStatus(StrEnum):
    """Stripe's statuses of a PaymentIntent."""

    REQUIRES_PAYMENT_METHOD = "requires_payment_method"
    REQUIRES_CONFIRMATION = "requires_confirmation"
    REQUIRES_ACTION = "requires_action"
    REQUIRES_CAPTURE = "requires_capture"
    PROCESSING = "processing"
    CANCELED = "canceled"
    SUCCEEDED = "succeeded"


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a card was not charged. `code` is Stripe's decline code if it has one, else its error code."""

    code: str
    message: str
    card: str | None = None
    """What tells the card from others, where Stripe tells it: the same whatever payment method it is saved as."""


@dataclass(frozen=True, slots=True)
class Refund:
    """Money that goes back to the card, whoever asked for it. Statuses are Stripe's."""

    id: str
    amount_cents: int
    status: str

    @property
    def effective(self) -> bool:
        """Whether it takes the money: Stripe does so when it is made, and gives it back if it fails or is cancelled."""
        return self.status in {"pending", "succeeded", "requires_action"}


@dataclass(frozen=True, slots=True)
class Dispute:
    """A cardholder's dispute, of `amount_cents` of its own currency. An inquiry takes nothing."""

    id: str
    amount_cents: int
    currency: str
    withdrawn: bool
    """Whether Stripe has taken the money, ever."""
    reinstated: bool
    """Whether it has given the money back since."""

    @property
    def foreign(self) -> bool:
        """Whether it takes or gives something of which nobody knows what it is in USD."""
        return self.withdrawn and self.currency != CURRENCY


@dataclass(frozen=True, slots=True)
class Intent:
    """A PaymentIntent as Stripe tells it."""

    id: str
    status: str
    amount_cents: int
    received_cents: int
    currency: str
    livemode: bool
    created_at: datetime
    customer_id: str | None
    payment_method_id: str | None
    org_id: int | None
    """From our metadata, as the attempt's id and kind are. Anybody may edit them at Stripe: whose it is, the customer says."""
    attempt_id: UUID | None
    """None where it isn't a charge of ours, or its metadata no longer say so."""
    kind: AttemptKind | None
    decline: Decline | None
    """Its last error."""
    client_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class IntentSeen:
    """A finding: what Stripe holds. Refunds and disputes are None where nobody asked for them."""

    intent: Intent
    refunds: tuple[Refund, ...] | None = None
    disputes: tuple[Dispute, ...] | None = None


class Missing(StrEnum):
    """What Stripe no longer has, or another account of its has: deleted there, or asked for with another account's key."""

    CUSTOMER = "customer"
    PAYMENT_METHOD = "payment_method"

    @property
    def code(self) -> str:
        """Why an attempt failed that needed it."""
        return f"{self.value}_missing"


@dataclass(frozen=True, slots=True)
class ChargeRefused:
    """A finding: Stripe won't make such a charge, and has made none."""

    code: str
    message: str
    missing: Missing | None = None
    """What of ours Stripe doesn't have, if it is that."""
    concern: Concern = Concern.CUSTOMER
    declined: bool = False
    """Whether it was the card that was declined, before a PaymentIntent was made."""


@dataclass(frozen=True, slots=True)
class ChargeAbsent:
    """A finding: long after it was last sent, Stripe knows of no such charge."""


Finding = IntentSeen | ChargeRefused | ChargeAbsent
"""What was found out about an attempt's charge; `settle` brings the ledger to it."""
