"""What a hold keeps of the call that it is for: what was asked, at which prices, and what was answered first."""

from collections.abc import Iterable
from typing import Final

import msgspec

from metering.rules.pricing import Price


class HeldPrice(msgspec.Struct, frozen=True, array_like=True):
    """A price, as a hold keeps it: all that goes into a charge."""

    rate_microusd_per_minute: int
    increment_first_s: int
    increment_next_s: int
    minimum_s: int
    connect_fee_microusd: int


class FirstAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What was answered as the hold was made; kept once a renewal has changed it."""

    max_duration_s: int
    held_cents: int
    available_cents: int
    expires_ms: int


class HoldTerms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked and answered for one call."""

    tier: str
    direction: str
    max_duration_s: int
    """For how long in all it may last, by the newest answer."""
    prices: tuple[HeldPrice, ...]
    """Any of them may be the one that counts in the end."""
    first: FirstAnswer | None = None

    def encode(self) -> str:
        """As Redis keeps it."""
        return msgspec.json.encode(self).decode()

    def priced(self) -> list[Price]:
        """The prices, for the rules."""
        return [Price(self.tier, None, *msgspec.structs.astuple(each)) for each in self.prices]


_DECODER: Final = msgspec.json.Decoder(HoldTerms)


def decode_terms(text: str) -> HoldTerms | None:
    """The terms of a hold; None of one that telephony took by itself, and where somebody else wrote something there."""
    try:
        terms = _DECODER.decode(text)
        terms.priced()
    except (msgspec.DecodeError, ValueError, UnicodeError):
        return None
    return terms if terms.prices else None


def held_prices(prices: Iterable[Price]) -> tuple[HeldPrice, ...]:
    """Prices as a hold keeps them, each terms once."""
    return tuple(
        dict.fromkeys(
            HeldPrice(
                each.rate_microusd_per_minute,
                each.increment_first_s,
                each.increment_next_s,
                each.minimum_s,
                each.connect_fee_microusd,
            )
            for each in prices
        )
    )
