"""How long a call lasted, and how long one may last before its charge is more than the balance (docs/reference/http-api.md)."""

from typing import Final

from metering.rules.events import MAX_DURATION_S
from metering.rules.pricing import Price

_SIXTIETHS_PER_CENT: Final = 600_000
_HALF_A_CENT: Final = 300_000
_US_PER_S: Final = 1_000_000


def to_seconds(duration_us: int) -> int | float:
    """A duration as JSON has it: whole seconds without a point. No digit is lost: a double holds 15, and 12 are the most."""
    seconds, rest_us = divmod(duration_us, _US_PER_S)
    return duration_us / _US_PER_S if rest_us else seconds


def longest_duration_s(balance_cents: int, price: Price) -> int:
    """The longest call, in whole seconds, whose charge the balance covers; 0 while the gate is closed.

    While it is open at least one first increment, even where that costs more than there is: a gate looks at the balance alone,
    and must not let a call start only to cut it at once. At most what an event may say that a call lasted (section 3).
    """
    if balance_cents <= 0:
        return 0
    if price.rate_microusd_per_minute == 0:
        # Only the connect fee is charged, and no shorter call would cost less.
        covered = price.connect_fee_microusd * 60 < _limit(balance_cents)
        return MAX_DURATION_S if covered else price.increment_first_s
    # The charge is rounded half up: covered is whatever stays below half a cent more than the balance.
    for_seconds = _limit(balance_cents) - 1 - price.connect_fee_microusd * 60
    seconds = for_seconds // price.rate_microusd_per_minute
    steps = max(seconds - price.increment_first_s, 0) // price.increment_next_s
    longest = price.increment_first_s + steps * price.increment_next_s
    if longest < price.minimum_s:  # every call is charged for longer than that
        return price.increment_first_s
    return min(longest, MAX_DURATION_S)


def _limit(balance_cents: int) -> int:
    """The smallest charge, in sixtieths of a micro-USD, that is rounded to more than the balance."""
    return balance_cents * _SIXTIETHS_PER_CENT + _HALF_A_CENT
