"""What a hold costs: the most that a running call may still cost (docs/reference/holds.md#what-is-held)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from metering.rules.events import MAX_DURATION_S
from metering.rules.pricing import Price, charge_call
from metering.rules.steps import dearest_rate

STARTS_WITHIN: Final = timedelta(seconds=60)
"""How long after the first asking a call may start: any price that comes into force by then may be the one that counts."""
MARGIN_S: Final = 120
"""How long after its longest duration a call's hold lapses: time for the call to be cut, and for its event to be billed."""

_US_PER_S: Final = 1_000_000


def at_dearest(price: Price) -> Price:
    """A price without steps that no call under `price` costs more than, whatever the org has used in the month."""
    if not price.steps:
        return price
    return replace(price, rate_microusd_per_minute=dearest_rate(price.steps), steps=())


def hold_cents(seconds: int, prices: Iterable[Price]) -> int:
    """What a call of at most `seconds` may cost, whichever of `prices` counts in the end: the charge at the dearest of them.

    Not the sum of dear parts, but a whole charge: connect fee, minimum and increment included, rounded once. ValueError where
    there are no prices, or `seconds` is below 0.
    """
    return max(_charge_cents(seconds, price) for price in prices)


def first_increment_cents(prices: Iterable[Price]) -> int:
    """What the shortest call costs, at the dearest of `prices`: less money than that starts no call."""
    return hold_cents(1, [at_dearest(price) for price in prices])


def longest_covered_s(available_cents: int, prices: Sequence[Price]) -> int:
    """The longest call, in whole seconds, that `available_cents` covers, whichever of `prices` counts: 0 where it covers none.

    A call that it covers at all it covers for one first increment. At most what an event may say that a call lasted.
    """
    if hold_cents(1, prices) > available_cents:
        return 0
    shortest, longest = 1, MAX_DURATION_S
    while shortest < longest:  # a longer call never costs less
        middle = (shortest + longest + 1) // 2
        if hold_cents(middle, prices) <= available_cents:
            shortest = middle
        else:
            longest = middle - 1
    return shortest


def _charge_cents(seconds: int, price: Price) -> int:
    charge = charge_call(seconds * _US_PER_S, price.at_dearest())
    return 0 if charge is None else charge.amount_cents
