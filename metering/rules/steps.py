"""Steps: a price whose rate depends on what the org has used of the tier in the call's month.

Use is counted in billable seconds; a call that crosses a step is parted there, and
rounded once.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from metering.rules.money import MICROUSD_PER_USD, format_microusd, parse_usd

MAX_STEPS: Final = 20
MAX_UP_TO_MINUTES: Final = 1_000_000_000
"""Two thousand years of talking in one month: far above any use, far below 64 bits."""

_MINUTE_S: Final = 60
_SIXTIETHS_PER_CENT: Final = 600_000
_STEP: Final = re.compile(r"([0-9]{0,10}):([0-9.]+)")


class Step(NamedTuple):
    """The rate up to `until_s` billable seconds of the month; None is for all that comes after the step before."""

    until_s: int | None
    rate_microusd_per_minute: int


Steps = tuple[Step, ...]
"""In ascending order, the last one without an end (`check_steps`); empty for a price without steps."""


class Part(NamedTuple):
    """Billable seconds of a call that have one rate."""

    seconds: int
    rate_microusd_per_minute: int


def parse_step(text: str) -> Step:
    """Read a step, "500:0" or ":0.05": minutes of use up to which it counts, rate in USD. ValueError says the rule."""
    match = _STEP.fullmatch(text)
    if match is None:
        raise ValueError(
            "must be UP_TO_MINUTES:RATE, such as 500:0, and :RATE for the last one, such as :0.05"
        )
    minutes = match[1]
    if minutes and not 1 <= int(minutes) <= MAX_UP_TO_MINUTES:
        raise ValueError(f"must count up to a whole number of minutes from 1 to {MAX_UP_TO_MINUTES}")
    return Step(int(minutes) * _MINUTE_S if minutes else None, parse_usd(match[2]))


def format_steps(steps: Iterable[Step]) -> list[str]:
    """Write steps as `parse_steps` reads them: "500:0.00", ":0.05"."""
    return [_format(step) for step in steps]


def _format(step: Step) -> str:
    minutes = "" if step.until_s is None else str(step.until_s // _MINUTE_S)
    return f"{minutes}:{format_microusd(step.rate_microusd_per_minute)}"


def parse_steps(texts: Iterable[str]) -> Steps:
    """Read all steps of a price, in their order. ValueError says the rule, and names the step."""
    steps = []
    for text in texts:
        try:
            steps.append(parse_step(text))
        except ValueError as error:
            raise ValueError(f"{text!r} {error}") from None
    check_steps(steps)
    return tuple(steps)


def check_steps(steps: Sequence[Step]) -> None:
    """ValueError, with the rule, unless each counts further than the one before, in whole minutes, the last without end."""
    if not 1 <= len(steps) <= MAX_STEPS:
        raise ValueError(f"a price has from 1 to {MAX_STEPS} steps")
    before_s = 0
    for step in steps[:-1]:
        if step.until_s is None:
            raise ValueError(f"{_format(step)!r} must be the last step: it has no end")
        if step.until_s % _MINUTE_S or step.until_s > MAX_UP_TO_MINUTES * _MINUTE_S:
            raise ValueError(f"a step must count up to whole minutes, from 1 to {MAX_UP_TO_MINUTES}")
        if step.until_s <= before_s:
            raise ValueError(f"{_format(step)!r} must count further than the step before it")
        before_s = step.until_s
    if steps[-1].until_s is not None:
        raise ValueError(f"the last step must have no end, such as ':0.05', not {_format(steps[-1])!r}")
    if any(not 0 <= step.rate_microusd_per_minute <= MICROUSD_PER_USD * 1_000_000 for step in steps):
        raise ValueError("a step's rate must be from 0 to 1000000 USD")


def pack_steps(steps: Iterable[Step]) -> list[int]:
    """Steps as tables hold them: end, rate, end, rate, and so on to the last step's rate, which has no end before it."""
    return [number for step in steps for number in step if number is not None]


def unpack_steps(packed: Sequence[int]) -> Steps:
    """What `pack_steps` has packed; no steps for nothing. ValueError if they are none that could be charged."""
    if not packed:
        return ()
    if len(packed) % 2 == 0:
        raise ValueError("steps are ends and rates in turn, and the last rate")
    pairs = zip(packed[:-1:2], packed[1:-1:2], strict=True)
    steps = (*(Step(until_s, rate) for until_s, rate in pairs), Step(None, packed[-1]))
    check_steps(steps)
    return steps


def part_at_steps(billable_seconds: int, used_before_s: int, steps: Steps) -> tuple[Part, ...]:
    """Part a call's billable seconds, more than 0, at the steps; steps that follow each other with one rate don't part it."""
    parts: list[Part] = []
    left, used = billable_seconds, used_before_s
    for until_s, rate in steps:
        room = left if until_s is None else min(until_s - used, left)
        if room <= 0:
            continue
        if parts and parts[-1].rate_microusd_per_minute == rate:
            parts[-1] = Part(parts[-1].seconds + room, rate)
        else:
            parts.append(Part(room, rate))
        left -= room
        used += room
        if not left:
            break
    return tuple(parts)


def charge_steps(
    billable_seconds: int, used_before_s: int, steps: Steps, connect_fee_microusd: int, by_minutes: bool
) -> tuple[int, str]:
    """The charge in cents, 0 or more, rounded half up once over all parts; and its description (`by_minutes` for 60/60).

    See docs/reference/money-rules.md#rounding.
    """
    for until_s, rate in steps:  # nearly every call lies within one step
        if until_s is None or used_before_s + billable_seconds <= until_s:
            return _charge_part(billable_seconds, rate, connect_fee_microusd, by_minutes)
        if used_before_s < until_s:
            break
    return _charge_parts(
        part_at_steps(billable_seconds, used_before_s, steps), connect_fee_microusd, by_minutes
    )


@lru_cache(maxsize=8192)
def _charge_part(seconds: int, rate: int, connect_fee_microusd: int, by_minutes: bool) -> tuple[int, str]:
    return _charge_parts((Part(seconds, rate),), connect_fee_microusd, by_minutes)


@lru_cache(maxsize=8192)
def _charge_parts(parts: tuple[Part, ...], connect_fee_microusd: int, by_minutes: bool) -> tuple[int, str]:
    """Few calls cross a step, and seconds come in increments: charges are few, calls are many."""
    sixtieths = connect_fee_microusd * 60 + sum(
        part.seconds * part.rate_microusd_per_minute for part in parts
    )
    cents = (sixtieths + _SIXTIETHS_PER_CENT // 2) // _SIXTIETHS_PER_CENT
    return cents, describe_parts(parts, by_minutes=by_minutes)


def describe_parts(parts: Sequence[Part], *, by_minutes: bool) -> str:
    """The transaction's description: "Call billing: 12 minutes: 5 included, 7 × $0.08".

    A call in one step is described as one without steps, "Call billing: 2 minutes × $0.08", or "Call billing: 2 minutes
    included". In seconds, "Call billing: 36 seconds: 6 included, 30 × $0.08/min", unless every part is whole minutes of a price
    by the minute: what was used at other increments may end within one.
    """
    in_minutes = by_minutes and not any(part.seconds % _MINUTE_S for part in parts)
    size, unit, per = (_MINUTE_S, "minute", "") if in_minutes else (1, "second", "/min")

    def price(part: Part) -> str:
        rate = part.rate_microusd_per_minute
        return f" × ${format_microusd(rate)}{per}" if rate else " included"

    total = sum(part.seconds for part in parts) // size
    whole = f"Call billing: {total} {unit if total == 1 else unit + 's'}"
    if len(parts) == 1:
        return whole + price(parts[0])
    return f"{whole}: " + ", ".join(f"{part.seconds // size}{price(part)}" for part in parts)


def seconds_covered(budget_sixtieths: int, used_before_s: int, steps: Steps) -> int | None:
    """The most billable seconds that cost no more than the budget, in sixtieths of a micro-USD; None is without end.

    Negative where there is no budget at all.
    """
    if budget_sixtieths < 0:
        return -1
    seconds, used, left = 0, used_before_s, budget_sixtieths
    for until_s, rate in steps:
        if until_s is None:
            return seconds + left // rate if rate else None
        room = until_s - used
        if room <= 0:
            continue
        if room * rate > left:
            return seconds + left // rate
        seconds, used, left = seconds + room, until_s, left - room * rate
    raise ValueError("the last step must have no end")


def dearest_rate(steps: Steps, used_before_s: int = 0) -> int:
    """The highest rate, in micro-USD per minute, that a call can be charged of which so much was used before."""
    return max(rate for until_s, rate in steps if until_s is None or until_s > used_before_s)
