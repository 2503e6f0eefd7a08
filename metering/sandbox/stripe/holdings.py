"""What Stripe holds for each customer: the truth that balances are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from metering.sandbox.stripe.disputes import withdrawn_cents
from metering.sandbox.stripe.refunds import HOLDS_MONEY
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json


@dataclass(frozen=True, slots=True)
class Holding:
    """One customer's money, fees left aside."""

    received_cents: int = 0
    """What charges took."""
    refunded_cents: int = 0
    """What refunds gave back, those left out that failed."""
    disputed_cents: int = 0
    """What disputes took away, and have not given back."""
    net_cents: int = 0
    """What is left."""


def holdings(work: Work) -> Mapping[str, Holding]:
    """By customer, all that were ever charged; under "" what was charged without one."""
    held: dict[str, Holding] = {}
    for charge in work.newest("charge"):
        if charge["paid"]:
            customer = charge["customer"] or ""
            held[customer] = _plus(held.get(customer, Holding()), work, charge)
    return held


def _plus(holding: Holding, work: Work, charge: Json) -> Holding:
    of_charge = ("charge", charge["id"])
    refunded = sum(
        each["amount"] for each in work.newest("refund", of_charge) if each["status"] in HOLDS_MONEY
    )
    disputed = sum(withdrawn_cents(each) for each in work.newest("dispute", of_charge))
    return replace(
        holding,
        received_cents=holding.received_cents + charge["amount_captured"],
        refunded_cents=holding.refunded_cents + refunded,
        disputed_cents=holding.disputed_cents + disputed,
        net_cents=holding.net_cents + charge["amount_captured"] - refunded - disputed,
    )
