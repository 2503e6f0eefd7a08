"""How long a call lasted, and how long one may last before its charge is more than the balance (docs/reference/http-api.md)."""

from typing import Final

from metering.rules.events import MAX_DURATION_S
from metering.rules.pricing import Price
from metering.rules.steps import Step, seconds_covered

_SIXTIETHS_PER_CENT: Final = 600_000
_HALF_A_CENT: Final = 300_000
_US_PER_S: Final = 1_000_000


def to_seconds(duration_us: int) -> int | float:
    """A duration as JSON has it: whole seconds without a point. No digit is lost: a double holds 15, and 12 are the most."""
    seconds, rest_us = divmod(duration_us, _US_PER_S)
    return duration_us / _US_PER_S if rest_us else seconds


def longest_duration_s(balance_cents: int, price: Price, used_before_s: int = 0) -> int:
    """The longest call, in whole seconds, whose charge the balance covers; 0 while the gate is closed.

    While it is open at least one first increment, even where that costs more than there is: a gate looks at the balance alone,
    and must not let a call start only to cut it at once. At most what an event may say that a call lasted (section 3).

    `used_before_s` billable seconds are the month's use before the call, on which a price with steps depends.
    """
    if balance_cents <= 0:
        return 0
    # The charge is rounded half up: covered is whatever stays below half a cent more than the balance.
    budget = _limit(balance_cents) - 1 - price.connect_fee_microusd * 60
    rates = price.steps or (Step(None, price.rate_microusd_per_minute),)
    seconds = seconds_covered(budget, used_before_s, rates)
    if seconds is None:  # longer calls cost no more
        return MAX_DURATION_S
    increments = max(seconds - price.increment_first_s, 0) // price.increment_next_s
    longest = price.increment_first_s + increments * price.increment_next_s
    if longest < price.minimum_s:  # every call is charged for longer than that
        return price.increment_first_s
    return min(longest, MAX_DURATION_S)


def _limit(balance_cents: int) -> int:
    """The smallest charge, in sixtieths of a micro-USD, that is rounded to more than the balance."""
    return balance_cents * _SIXTIETHS_PER_CENT + _HALF_A_CENT
