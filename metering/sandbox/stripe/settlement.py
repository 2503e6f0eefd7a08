"""What an account settles in: the currency of its balance transactions, whatever its charges are in."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Self

from metering.sandbox.stripe.values import Json


@dataclass(frozen=True, slots=True)
class Settlement:
    """The currency that an account settles in, and what one unit of another currency is worth in it."""

    currency: str = "usd"
    exchange_rate: Decimal = Decimal(1)
    fee_apart: bool = False
    """Whether a dispute's fee is a balance transaction of its own, listed by the dispute, or a part of the withdrawal."""

    def kept(self) -> Json:
        """As an account keeps it."""
        return {
            "currency": self.currency,
            "exchange_rate": str(self.exchange_rate),
            "fee_apart": self.fee_apart,
        }

    @classmethod
    def of(cls, kept: Json) -> Self:
        """What an account has kept."""
        return cls(kept["currency"], Decimal(kept["exchange_rate"]), kept["fee_apart"])

    def convert(self, amount: int, currency: str) -> tuple[int, float | None]:
        """An amount as it is settled, and the rate that Stripe shows with it: None where nothing is converted."""
        if currency == self.currency:
            return amount, None
        return int((amount * self.exchange_rate).to_integral_value(ROUND_HALF_UP)), float(self.exchange_rate)
