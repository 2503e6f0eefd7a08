"""What a call costs: prices, billing increments, one rounding (docs/reference/money-rules.md)."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from metering.rules.events import MAX_DURATION_S
from metering.rules.money import MAX_USD, MICROUSD_PER_USD, format_microusd
from metering.rules.steps import Steps, charge_steps, check_steps, dearest_rate

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
    """A tier's price from `in_force_from` on (aware; None is since ever), until the tier's next one; with `org_id` that org's.

    Rate and connect fee are in micro-USD, increments and minimum in whole seconds. With `steps`, two or more, the rate depends on
    what the org has used of the tier in the month, and the rate here is that of the last step. ValueError, naming the field, for
    a price that could not be charged.
    """

    tier: str
    in_force_from: datetime | None
    rate_microusd_per_minute: int
    increment_first_s: int
    increment_next_s: int
    minimum_s: int
    connect_fee_microusd: int
    org_id: int | None = None
    steps: Steps = ()

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
        if self.steps:
            try:
                check_steps(self.steps)
            except ValueError as error:
                raise ValueError(f"steps: {error}") from None
            if (
                len(self.steps) == 1
                or self.steps[-1].rate_microusd_per_minute != self.rate_microusd_per_minute
            ):
                raise ValueError(
                    "steps must be two or more, and rate_microusd_per_minute that of the last one"
                )

    @property
    def terms(self) -> tuple[int, int, int, int, int, Steps]:
        """All that goes into a charge, but for what was used before."""
        return (
            self.rate_microusd_per_minute,
            self.increment_first_s,
            self.increment_next_s,
            self.minimum_s,
            self.connect_fee_microusd,
            self.steps,
        )

    @property
    def dearest_rate(self) -> int:
        """The highest rate, in micro-USD per minute, that a call may have."""
        return dearest_rate(self.steps) if self.steps else self.rate_microusd_per_minute

    @property
    def lowest_rate(self) -> int:
        """The lowest rate above 0, in micro-USD per minute, that a call may have; 0 where all are."""
        rates = [step.rate_microusd_per_minute for step in self.steps] or [self.rate_microusd_per_minute]
        return min((rate for rate in rates if rate), default=0)

    def at_dearest(self) -> "Price":
        """The same price as if all were charged at its dearest step: no call costs more, whatever was used before it."""
        return replace(self, rate_microusd_per_minute=self.dearest_rate, steps=()) if self.steps else self


@dataclass(frozen=True, slots=True)
class PriceEnd:
    """The end of an org's own price of a tier: from `in_force_from` on (aware) the tier's counts again."""

    tier: str
    org_id: int
    in_force_from: datetime


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


def charge_call(duration_us: int, price: Price, used_before_s: int | None = None) -> Charge | None:
    """The charge for a completed call; None for a call of 0 s, which costs nothing and leaves no transaction.

    Rounded half up to a cent, once per call (docs/reference/money-rules.md#rounding). `used_before_s`, the org's billable seconds
    of the tier in the call's month before this call, is needed for a price with steps. ValueError where it is missing, and for a
    negative duration.
    """
    if duration_us <= 0:
        if duration_us < 0:
            raise ValueError("duration_us must not be negative")
        return None
    seconds = billable_seconds(duration_us, price)
    if price.steps:
        if used_before_s is None:
            raise ValueError("a price with steps needs to know what was used before")
        return charge_seconds(seconds, price, used_before_s)
    return _charge(seconds, price.rate_microusd_per_minute, price.connect_fee_microusd, _by_minutes(price))


def charge_seconds(billable_seconds: int, price: Price, used_before_s: int) -> Charge:
    """The same for billable seconds, more than 0, and a price with steps."""
    cents, description = charge_steps(
        billable_seconds,
        used_before_s,
        price.steps,
        price.connect_fee_microusd,
        by_minutes=_by_minutes(price),
    )
    return Charge(billable_seconds, cents, description)


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
    """Every price of every tier and org, as of one version of the price list; `"bolt" in book` for a known tier.

    Never changed: threads read one while another takes its place.
    """

    def __init__(
        self,
        version: int,
        prices: Iterable[Price | PriceEnd],
        cancelled_steps: Iterable[tuple[str, int | None]] = (),
    ) -> None:
        """Take the prices in any order. ValueError when two of a tier, or of an org, come into force at the same instant.

        `cancelled_steps` are the tiers, each with an org or None, that had a price with steps which was cancelled: a call that
        starts ahead of the clock may have been priced by it before that, and its use counts.
        """
        self.version = version
        by_owner: dict[tuple[str, int | None], list[Price | PriceEnd]] = {}
        for price in prices:
            by_owner.setdefault((price.tier, price.org_id), []).append(price)
        self._tiers: dict[str, _History] = {}
        self._orgs: dict[str, dict[int, _History]] = {}
        for (tier, org_id), listed in by_owner.items():
            if org_id is None:
                self._tiers[tier] = _history(listed)
            else:
                self._orgs.setdefault(tier, {})[org_id] = _history(listed)
        self._stepped = frozenset(owner for owner, listed in by_owner.items() if _has_steps(listed)).union(
            cancelled_steps
        )
        self._note_newest()

    def changed(
        self,
        version: int,
        prices: Iterable[Price | PriceEnd],
        owners: Iterable[tuple[str, int | None]],
        cancelled_steps: Iterable[tuple[str, int | None]] = (),
    ) -> "PriceBook":
        """A later version: of `owners`, each a tier and an org or None, there is nothing now but what `prices` say."""
        changes = PriceBook(version, prices, cancelled_steps)
        later = PriceBook(version, [])
        later._tiers = self._tiers | changes._tiers
        later._orgs = dict(self._orgs)
        copied: set[str] = set()
        for tier, org_id in owners:
            if org_id is None:
                if tier not in changes._tiers:
                    later._tiers.pop(tier, None)
                continue
            if tier not in copied:  # 100,000 orgs are copied in a millisecond
                copied.add(tier)
                later._orgs[tier] = self._orgs.get(tier, {}) | changes._orgs.get(tier, {})
            if org_id not in changes._orgs.get(tier, {}):
                later._orgs[tier].pop(org_id, None)
        for tier in copied:
            if not later._orgs[tier]:
                del later._orgs[tier]
        later._stepped = self._stepped | changes._stepped  # what had steps once may have use that is counted
        later._note_newest()
        return later

    def _note_newest(self) -> None:
        """Keep at hand what nearly every call needs: each tier's last price, from when on it is sure, and its orgs' own."""
        self._newest = {
            tier: (prices[-1], since, self._orgs.get(tier))
            for tier, (_, prices, since) in self._tiers.items()
        }

    def __contains__(self, tier: object) -> bool:
        return tier in self._tiers

    @property
    def has_steps(self) -> bool:
        """Whether any price has, or had."""
        return bool(self._stepped)

    def counts_usage(self, tier: str, org_id: int) -> bool:
        """Whether a price of the org, or of the tier for all, ever had steps, a cancelled one too: then its use of a month may be
        counted.
        """
        return (tier, None) in self._stepped or (tier, org_id) in self._stepped

    def tiers(self) -> list[str]:
        """The names of all tiers, sorted."""
        return sorted(self._tiers)

    def price_of(self, tier: str, org_id: int, ended_at: datetime, duration_us: int) -> Price | None:
        """The price of a call of `tier`: the one in force when it started; None as `in_force`.

        See docs/reference/money-rules.md#which-price-counts.
        """
        newest = self._newest.get(tier)
        if newest is None:
            return None
        price, since, orgs = newest
        if orgs is not None and org_id in orgs:
            _, prices, since = orgs[org_id]
            price = prices[-1]
        # Nearly every call ended so long after the newest price came into force that it must have started after that as well.
        if ended_at >= since and price.__class__ is Price:
            return price
        return self.in_force(tier, org_id, ended_at - timedelta(microseconds=duration_us))

    def in_force(self, tier: str, org_id: int | None, at: datetime) -> Price | None:
        """The price at an instant (aware), which is a call's start: the org's own if it has one then, else the tier's.

        With `org_id` None the tier's. None for an unknown tier, and for an instant before the tier's first price. See
        docs/reference/money-rules.md#which-price-counts.
        """
        history = self._tiers.get(tier)
        if history is None:
            return None
        own = None if org_id is None else self._orgs.get(tier, {}).get(org_id)
        price = None if own is None else _at(own, at)
        return price if price is not None else _at(history, at)

    def in_force_between(self, tier: str, org_id: int | None, first: datetime, last: datetime) -> list[Price]:
        """Every price that `in_force` gives for some instant from `first` to `last`, both included, in order of time."""
        own = None if org_id is None else self._orgs.get(tier, {}).get(org_id)
        changes = {first}
        for history in (self._tiers.get(tier), own):
            if history is not None:
                changes.update(start for start in history[0] if first < start <= last)
        found: list[Price] = []
        for at in sorted(changes):
            price = self.in_force(tier, org_id, at)
            if price is not None and price not in found:
                found.append(price)
        return found


_History = tuple[list[datetime], list[Price | PriceEnd], datetime]
"""What a tier, or an org for a tier, has had: since when, what, and the earliest end of a call that must have started under the
last one."""


def _history(listed: Iterable[Price | PriceEnd]) -> _History:
    by_start: dict[datetime, Price | PriceEnd] = {}
    for price in listed:
        start = price.in_force_from or _SINCE_EVER
        if start in by_start:
            raise ValueError(f"tier {price.tier} has two prices in force from {start.isoformat()}")
        by_start[start] = price
    starts = sorted(by_start)
    return starts, [by_start[start] for start in starts], min(starts[-1], _LAST_CERTAIN) + _LONGEST


def _has_steps(listed: Iterable[Price | PriceEnd]) -> bool:
    return any(isinstance(price, Price) and price.steps for price in listed)


def _at(history: _History, at: datetime) -> Price | None:
    """What is in force at an instant; None before the first, and after an end."""
    starts, prices, _ = history
    later = bisect_right(starts, at)
    price = prices[later - 1] if later else None
    return price if isinstance(price, Price) else None
