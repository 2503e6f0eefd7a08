"""Re-pricing: which calls would have cost something else, and on what terms (docs/reference/money-rules.md)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from metering.rules.money import format_microusd
from metering.rules.steps import Steps, format_steps
from metering.rules.times import format_time

_LAST: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RepricingTerms:
    """What calls of `tier` that started from `from_at` on and before `until_at` are to cost; of all orgs, or of one.

    Rate and connect fee are in micro-USD, increment and minimum in whole seconds. None is as each call was billed. With `steps`
    the rate is that of the last one. ValueError, naming the field, for a time that is empty.
    """

    tier: str
    from_at: datetime
    until_at: datetime
    org_id: int | None
    rate_microusd_per_minute: int
    steps: Steps = ()
    increment: tuple[int, int] | None = None
    minimum_s: int | None = None
    connect_fee_microusd: int | None = None

    def __post_init__(self) -> None:
        if self.from_at >= self.until_at:
            raise ValueError(
                "to: must be later than from: the time begins with from, and ends just before to"
            )

    def overlaps(self, other: "RepricingTerms") -> bool:
        """Whether a call can be of both."""
        same_org = None in (self.org_id, other.org_id) or self.org_id == other.org_id
        return (
            self.tier == other.tier
            and same_org
            and self.from_at < other.until_at
            and other.from_at < self.until_at
        )


def whole_months(from_at: datetime, until_at: datetime) -> tuple[datetime, datetime]:
    """The UTC months that a time touches: from their first instant to that at which the next month begins."""
    first = from_at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last = (until_at - timedelta(microseconds=1)).astimezone(UTC)
    if (last.year, last.month) == (_LAST.year, _LAST.month):
        return first, _LAST
    year, month = divmod(last.year * 12 + last.month, 12)
    return first, datetime(year, month + 1, 1, tzinfo=UTC)


def describe(terms: RepricingTerms) -> str:
    """Which calls, and at what: "tier bolt, calls that started from ... and before ..., of all orgs, at $0.07 per minute"."""
    whose = "all orgs" if terms.org_id is None else f"org {terms.org_id}"
    return (
        f"tier {terms.tier}, calls of {whose} that started from {format_time(terms.from_at)} on and before"
        f" {format_time(terms.until_at)}, at {describe_price(terms)}"
    )


def describe_price(terms: RepricingTerms) -> str:
    """What calls are to cost: "$0.07 per minute", "steps 500:0.00 :0.07", with whatever else is named."""
    price = f"${format_microusd(terms.rate_microusd_per_minute)} per minute"
    if terms.steps:
        price = f"steps {' '.join(format_steps(terms.steps))}"
    if terms.increment is not None:
        price += ", increments of {}/{} s".format(*terms.increment)
    if terms.minimum_s is not None:
        price += f", at least {terms.minimum_s} s"
    if terms.connect_fee_microusd is not None:
        price += f", plus ${format_microusd(terms.connect_fee_microusd)} per call"
    return price
