"""What every payment needs, handed from hand to hand."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Engine

from metering.payments.stripe_api import StripeApi
from metering.rules.payments import MAX_CHARGE_CENTS, MIN_TOP_UP_CENTS
from metering.runtime.clock import Clock
from metering.signals.gates import Gates
from metering.signals.reload_signals import ReloadSignals


@dataclass(frozen=True, slots=True)
class TopUpLimits:
    """The smallest and the largest top-up, in cents (docs/reference/http-api.md#top-ups)."""

    min_cents: int = MIN_TOP_UP_CENTS
    max_cents: int = MAX_CHARGE_CENTS


@dataclass(frozen=True, slots=True)
class Payments:
    """The ledger, the gates, Stripe and the clock."""

    engine: Engine
    gates: Gates
    signals: ReloadSignals
    stripe: StripeApi
    clock: Clock
    enqueue: Callable[[int, UUID], None]
    """Tells the jobs of an attempt, by org and id, that is to be charged. Must not fail; the reconciler finds what it loses."""
    top_up_limits: TopUpLimits = TopUpLimits()
    return_url: str | None = None
    """Where a bank sends a top-up's customer back to. None only where no top-ups are made: Stripe would refuse them."""
