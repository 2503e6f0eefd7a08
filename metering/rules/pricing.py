"""What a call costs: prices, billing increments, one rounding (docs/reference/money-rules.md)."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from metering.rules.events import MAX_DURATION_S
from metering.rules.money import MAX_USD, MICROUSD_PER_USD, format_microusd

MAX_INCREMENT_S = 86_400
MAX_MINIMUM_S = 604_800

_US_PER_S = 1_000_000
_MINUTE_S = 60
_SINCE_EVER = datetime.min.replace(tzinfo=UTC)
_LONGEST = timedelta(seconds=MAX_DURATION_S)
_LAST_CERTAIN = datetime.max.replace(tzinfo=UTC) - _LONGEST
_TIER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_INCREMENT = re.compile(r"([0-9]{1,5})/([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Price:
    """A tier's price from `in_force_from` on (aware; None is since ever), until the tier's next one.

    Rate and connect fee are in micro-USD, increments and minimum in whole seconds. ValueError, naming the
    field, for a price that could not be charged.
    """

    tier: str
    in_force_from: datetime | None
    rate_microusd_per_minute: int
    increment_first_s: int
    increment_next_s: int
    minimum_s: int
    connect_fee_microusd: int

    def __post_init__(self) -> None:
        if not _TIER_NAME.fullmatch(self.tier):
            raise ValueError(
                "tier must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and start with a letter or a digit"
            )
        if self.in_force_from is not None and self.in_force_from.utcoffset() is None:
            raise ValueError("in_force_from must carry an offset")
        _check_range("rate_microusd_per_minute", self.rate_microusd_per_minute, 0, MAX_USD * MICROUSD_PER_USD)
        _check_range("increment_first_s", self.increment_first_s, 1, MAX_INCREMENT_S)
        _check_range("increment_next_s", self.increment_next_s, 1, MAX_INCREMENT_S)
        _check_range("minimum_s", self.minimum_s, 0, MAX_MINIMUM_S)
        _check_range("connect_fee_microusd", self.connect_fee_microusd, 0, MAX_USD * MICROUSD_PER_USD)


def _check_range(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be from {lowest} to {highest}")


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What one call costs: `amount_cents` is 0 or more; the debit is its negative."""

    billable_seconds: int
    amount_cents: int
    description: str


def billable_seconds(duration_us: int, price: Price) -> int:
    """The seconds that are charged for a call of `duration_us` microseconds (docs/reference/money-rules.md#billable-seconds).

    The longer of duration and minimum, rounded up to the increment; 0 for a call of 0 s all the same.
    """
    if duration_us == 0:
        return 0
    # Increments are whole seconds, so rounding up to a second first never changes the result.
    seconds = max(-(-duration_us // _US_PER_S), price.minimum_s)
    if seconds <= price.increment_first_s:
        return price.increment_first_s
    past_first = seconds - price.increment_first_s
    return price.increment_first_s - (-past_first // price.increment_next_s) * price.increment_next_s


def charge_call(duration_us: int, price: Price) -> Charge | None:
    """The charge for a completed call; None for a call of 0 s, which costs nothing and leaves no transaction.

    Rounded half up to a cent, once per call (docs/reference/money-rules.md#rounding). ValueError for a negative
    duration.
    """
    if duration_us <= 0:
        if duration_us < 0:
            raise ValueError("duration_us must not be negative")
        return None
    seconds = billable_seconds(duration_us, price)
    return _charge(seconds, price.rate_microusd_per_minute, price.connect_fee_microusd, _by_minutes(price))


@lru_cache(maxsize=8192)
def _charge(
    seconds: int, rate_microusd_per_minute: int, connect_fee_microusd: int, by_minutes: bool
) -> Charge:
    """Charges are few, because seconds come in increments; calls are many."""
    # One cent is 600,000 of the unit that makes both terms whole: a sixtieth of a micro-USD.
    sixtieths = connect_fee_microusd * 60 + seconds * rate_microusd_per_minute
    description = _describe(seconds, rate_microusd_per_minute, by_minutes)
    return Charge(seconds, (sixtieths + 300_000) // 600_000, description)


def describe(billable_seconds: int, price: Price) -> str:
    """The transaction's description (docs/reference/money-rules.md#descriptions).

    "Call billing: 2 minutes × $0.08" for 60/60, "Call billing: 36 seconds × $0.08/min" for others.
    """
    return _describe(billable_seconds, price.rate_microusd_per_minute, _by_minutes(price))


def _by_minutes(price: Price) -> bool:
    return price.increment_first_s == _MINUTE_S == price.increment_next_s


def _describe(seconds: int, rate_microusd_per_minute: int, by_minutes: bool) -> str:
    rate = format_microusd(rate_microusd_per_minute)
    if by_minutes:
        return f"Call billing: {_count(seconds // 60, 'minute')} × ${rate}"
    return f"Call billing: {_count(seconds, 'second')} × ${rate}/min"


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def parse_increment(text: str) -> tuple[int, int]:
    """Read a billing increment, "60/60", as (first, next) in seconds. ValueError says the rule."""
    match = _INCREMENT.fullmatch(text)
    if match:
        first, following = int(match[1]), int(match[2])
        if 1 <= first <= MAX_INCREMENT_S and 1 <= following <= MAX_INCREMENT_S:
            return first, following
    raise ValueError(f"must be FIRST/NEXT in whole seconds, each from 1 to {MAX_INCREMENT_S}, such as 60/60")


class PriceBook:
    """Every price of every tier, as of one version of the price list; `"bolt" in book` for a known tier."""

    def __init__(self, version: int, prices: Iterable[Price]) -> None:
        """Take the prices in any order. ValueError when two of a tier come into force at the same instant."""
        self.version = version
        by_tier: dict[str, dict[datetime, Price]] = {}
        for price in prices:
            history = by_tier.setdefault(price.tier, {})
            start = price.in_force_from or _SINCE_EVER
            if start in history:
                raise ValueError(f"tier {price.tier} has two prices in force from {start.isoformat()}")
            history[start] = price
        self._history = {
            tier: (starts := sorted(history), [history[start] for start in starts])
            for tier, history in by_tier.items()
        }
        self._newest = {
            tier: (prices[-1], min(starts[-1], _LAST_CERTAIN) + _LONGEST)
            for tier, (starts, prices) in self._history.items()
        }

    def __contains__(self, tier: object) -> bool:
        return tier in self._history

    def tiers(self) -> list[str]:
        """The names of all tiers, sorted."""
        return sorted(self._history)

    def price_of(self, tier: str, ended_at: datetime, duration_us: int) -> Price | None:
        """The price of a call of `tier`: the one in force when it started; None as `in_force`.

        See docs/reference/money-rules.md#which-price-counts.
        """
        newest = self._newest.get(tier)
        if newest is None:
            return None
        # Nearly every call ended so long after the newest price came into force that it must have started after that as well.
        if ended_at >= newest[1]:
            return newest[0]
        return self.in_force(tier, ended_at - timedelta(microseconds=duration_us))

    def in_force(self, tier: str, at: datetime) -> Price | None:
        """The tier's price at an instant (aware): a call's start (docs/reference/money-rules.md#which-price-counts).

        None for an unknown tier, and for an instant before the tier's first price.
        """
        history = self._history.get(tier)
        if history is None:
            return None
        starts, prices = history
        later = bisect_right(starts, at)
        return prices[later - 1] if later else None
