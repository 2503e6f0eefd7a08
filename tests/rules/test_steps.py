"""Steps: parted by billable seconds, rounded once; held against exact fractions, second by second."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.rules.durations import longest_duration_s
from metering.rules.events import MAX_DURATION_S
from metering.rules.pricing import billable_seconds, charge_call
from metering.rules.steps import (
    MAX_STEPS,
    Step,
    Steps,
    charge_steps,
    check_steps,
    dearest_rate,
    format_steps,
    pack_steps,
    parse_steps,
    part_at_steps,
    seconds_covered,
    unpack_steps,
)
from tests.rules.test_pricing import a_price

PACKAGE = parse_steps(["500:0", "2000:0.06", ":0.05"])
INCLUDED = parse_steps(["5:0", ":0.08"])


def test_steps_are_read_as_they_are_written() -> None:
    assert list(PACKAGE) == [Step(30_000, 0), Step(120_000, 60_000), Step(None, 50_000)]
    assert format_steps(PACKAGE) == ["500:0.00", "2000:0.06", ":0.05"]


def test_tables_hold_ends_and_rates_in_turn() -> None:
    assert pack_steps(PACKAGE) == [30_000, 0, 120_000, 60_000, 50_000]
    assert unpack_steps([30_000, 0, 120_000, 60_000, 50_000]) == PACKAGE
    assert unpack_steps([]) == ()


@pytest.mark.parametrize("packed", [[30_000, 0], [30_000, 0, 30_000, 0, 0], [61, 0, 0]])
def test_what_are_no_steps_is_not_unpacked(packed: list[int]) -> None:
    with pytest.raises(ValueError, match="step"):
        unpack_steps(packed)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ([], "from 1 to 20 steps"),
        ([*(f"{up_to}:1" for up_to in range(1, MAX_STEPS + 1)), ":1"], "from 1 to 20 steps"),
        (["500:0"], "'500:0.00'"),
        ([":0.08", "500:0"], "':0.08' must be the last step"),
        ([":0.08", ":0.07"], "must be the last step"),
        (["500:0", "500:0.06", ":0.05"], "'500:0.06' must count further"),
        (["500:0", "400:0.06", ":0.05"], "'400:0.06' must count further"),
        (["0:0", ":0.05"], "'0:0' must count up to"),
        (["1000000001:0", ":0.05"], "must count up to"),
        (["99999999999:0", ":0.05"], "must be UP_TO_MINUTES:RATE"),
        (["1.5:0", ":0.05"], "must be UP_TO_MINUTES:RATE"),
        (["-1:0", ":0.05"], "must be UP_TO_MINUTES:RATE"),
        (["500", ":0.05"], "'500' must be UP_TO_MINUTES:RATE"),
        ([":"], "must be UP_TO_MINUTES:RATE"),
        ([":0.05 "], "must be UP_TO_MINUTES:RATE"),
        ([":0.1234567"], "':0.1234567' must be plain USD"),
        ([":1000000.000001"], "must be plain USD"),
        (["\N{ARABIC-INDIC DIGIT FIVE}:0", ":0.05"], "must be UP_TO_MINUTES:RATE"),
    ],
)
def test_bad_steps_are_told_by_name_and_rule(texts: list[str], rule: str) -> None:
    with pytest.raises(ValueError, match=r"step|must") as refused:
        parse_steps(texts)
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    "steps",
    [
        (Step(61, 0), Step(None, 1)),
        (Step(0, 0), Step(None, 1)),
        (Step(-60, 0), Step(None, 1)),
        (Step(None, -1),),
        (Step(None, 10**12 + 1),),
    ],
)
def test_steps_that_no_command_can_write_are_refused_too(steps: Steps) -> None:
    with pytest.raises(ValueError, match="step"):
        check_steps(steps)


@pytest.mark.parametrize(
    ("steps", "used_before_min", "minutes", "cents", "description"),
    [
        (INCLUDED, 0, 12, 56, "Call billing: 12 minutes: 5 included, 7 × $0.08"),
        (INCLUDED, 0, 4, 0, "Call billing: 4 minutes included"),
        (INCLUDED, 0, 5, 0, "Call billing: 5 minutes included"),  # exactly to the step
        (INCLUDED, 4, 1, 0, "Call billing: 1 minute included"),
        (INCLUDED, 5, 1, 8, "Call billing: 1 minute × $0.08"),  # exactly from it
        (INCLUDED, 4, 2, 8, "Call billing: 2 minutes: 1 included, 1 × $0.08"),
        (INCLUDED, 10_000, 2, 16, "Call billing: 2 minutes × $0.08"),
        (PACKAGE, 499, 1502, 9_005, "Call billing: 1502 minutes: 1 included, 1500 × $0.06, 1 × $0.05"),  # two steps
        (PACKAGE, 1_999, 2, 11, "Call billing: 2 minutes: 1 × $0.06, 1 × $0.05"),
        (parse_steps([":0.08"]), 7, 2, 16, "Call billing: 2 minutes × $0.08"),  # one step is no step
        (parse_steps(["5:0.08", ":0.08"]), 4, 2, 16, "Call billing: 2 minutes × $0.08"),
        # Half a cent and half a cent: each part alone would be rounded up to one.
        (parse_steps(["1:0.005", ":0.004999"]), 0, 2, 1, "Call billing: 2 minutes: 1 × $0.005, 1 × $0.004999"),
    ],
)  # fmt: skip
def test_whole_minutes(
    steps: Steps, used_before_min: int, minutes: int, cents: int, description: str
) -> None:
    charge = charge_steps(minutes * 60, used_before_min * 60, steps, 0, by_minutes=True)
    assert charge == (cents, description)


@pytest.mark.parametrize(
    ("used_before_s", "seconds", "by_minutes", "cents", "description"),
    [
        (294, 36, False, 4, "Call billing: 36 seconds: 6 included, 30 × $0.08/min"),
        (0, 36, False, 0, "Call billing: 36 seconds included"),
        (0, 1, False, 0, "Call billing: 1 second included"),
        (300, 36, False, 5, "Call billing: 36 seconds × $0.08/min"),
        (299, 2, False, 0, "Call billing: 2 seconds: 1 included, 1 × $0.08/min"),
        # A price by the minute after one by 6 seconds in the same month: the step lies within a minute.
        (270, 120, True, 12, "Call billing: 120 seconds: 30 included, 90 × $0.08/min"),
        (306, 120, True, 16, "Call billing: 2 minutes × $0.08"),
        (240, 120, False, 8, "Call billing: 120 seconds: 60 included, 60 × $0.08/min"),
    ],
)
def test_other_increments(
    used_before_s: int, seconds: int, by_minutes: bool, cents: int, description: str
) -> None:
    charge = charge_steps(seconds, used_before_s, INCLUDED, 0, by_minutes=by_minutes)
    assert charge == (cents, description)


@pytest.mark.parametrize(
    ("rates", "fee_microusd", "cents"),
    [(("0.0025", "0.0025"), 0, 1), (("0.0025", "0.002499"), 0, 0), (("0.0025", "0.002499"), 1, 1)],
)
def test_the_connect_fee_is_rounded_together_with_all_parts(
    rates: tuple[str, str], fee_microusd: int, cents: int
) -> None:
    steps = parse_steps([f"5:{rates[0]}", f":{rates[1]}"])
    assert charge_steps(120, 240, steps, fee_microusd, by_minutes=True)[0] == cents


rates = st.one_of(st.sampled_from([0, 0, 5_000, 50_000, 80_000]), st.integers(0, 10**12))


@st.composite
def some_steps(draw: st.DrawFn, *, most_minutes: int = 30) -> Steps:
    ends = sorted(draw(st.sets(st.integers(1, most_minutes), max_size=4)))
    steps = (*(Step(end * 60, draw(rates)) for end in ends), Step(None, draw(rates)))
    check_steps(steps)
    return steps


def rate_of(second: int, steps: Steps) -> int:
    """Of the month's billable second, counted from 0."""
    return next(rate for until_s, rate in steps if until_s is None or second < until_s)


used = st.one_of(st.sampled_from([0, 59, 60, 61, 300]), st.integers(0, 4_000))


@given(st.integers(1, 2_000), used, some_steps(), st.one_of(st.just(0), rates), st.booleans())
def test_a_charge_is_the_sum_of_each_seconds_rate_rounded_half_up_once(
    seconds: int, used_before_s: int, steps: Steps, fee: int, by_minutes: bool
) -> None:
    exact = Fraction(fee, 10_000) + sum(
        (Fraction(rate_of(used_before_s + nth, steps), 600_000) for nth in range(seconds)), Fraction(0)
    )
    parts = part_at_steps(seconds, used_before_s, steps)
    cents, description = charge_steps(seconds, used_before_s, steps, fee, by_minutes=by_minutes)
    assert cents == floor(exact + Fraction(1, 2))
    assert sum(part.seconds for part in parts) == seconds
    assert description.startswith("Call billing: ")
    assert all(part.seconds > 0 for part in parts)
    assert all(
        one.rate_microusd_per_minute != next_one.rate_microusd_per_minute for one, next_one in pairwise(parts)
    )
    assert dearest_rate(steps, used_before_s) >= max(part.rate_microusd_per_minute for part in parts)


@given(rates, st.integers(1, 604_800_000_000), used, st.one_of(st.just(0), rates), st.sampled_from([6, 60]))
def test_one_step_charges_and_says_what_a_price_without_steps_does(
    rate: int, duration_us: int, used_before_s: int, fee: int, increment: int
) -> None:
    price = a_price(
        rate_microusd_per_minute=rate,
        connect_fee_microusd=fee,
        increment_first_s=increment,
        increment_next_s=increment,
    )
    flat = charge_call(duration_us, price)
    seconds, steps = billable_seconds(duration_us, price), (Step(None, rate),)
    cents, description = charge_steps(seconds, used_before_s, steps, fee, by_minutes=increment == 60)
    assert flat is not None
    assert cents == flat.amount_cents
    if rate:
        assert description == flat.description


def test_the_dearest_rate_is_one_that_can_still_be_reached() -> None:
    steps = parse_steps(["5:0.1", "10:0", ":0.05"])
    assert [dearest_rate(steps, used_s) for used_s in (0, 299, 300, 10_000)] == [
        100_000,
        100_000,
        50_000,
        50_000,
    ]


@given(st.integers(-1_000, 10**9), used, some_steps())
def test_seconds_covered_cost_no_more_and_one_more_would(
    budget: int, used_before_s: int, steps: Steps
) -> None:
    seconds = seconds_covered(budget, used_before_s, steps)

    def cost(seconds: int) -> int:
        return sum(
            part.seconds * part.rate_microusd_per_minute
            for part in part_at_steps(seconds, used_before_s, steps)
        )

    if seconds is None:
        assert steps[-1].rate_microusd_per_minute == 0
        assert cost(10**9) <= budget
    elif budget < 0:
        assert seconds == -1
    else:
        assert cost(seconds) <= budget < cost(seconds + 1)


@pytest.mark.parametrize(
    ("balance_cents", "used_before_min", "changes", "seconds"),
    [
        (8, 0, {}, 6 * 60),  # five included, one paid
        (8, 4, {}, 2 * 60),
        (8, 5, {}, 60),
        (7, 4, {}, 60),
        (7, 5, {}, 60),  # doesn't cover it, but the gate is open
        (0, 0, {}, 0),
        (16, 4, {"increment_first_s": 6, "increment_next_s": 6}, 3 * 60),
        (3, 0, {"connect_fee_microusd": 50_000}, 60),
        (5, 0, {"connect_fee_microusd": 50_000}, 5 * 60),
    ],
)
def test_the_longest_call_that_a_balance_covers(
    balance_cents: int, used_before_min: int, changes: dict[str, Any], seconds: int
) -> None:
    price = a_price(rate_microusd_per_minute=INCLUDED[-1].rate_microusd_per_minute, steps=INCLUDED, **changes)
    longest = longest_duration_s(balance_cents, price, used_before_min * 60)
    assert longest == seconds


increments = st.one_of(st.integers(1, 90), st.integers(1, 86_400))


@given(
    st.one_of(st.integers(1, 50), st.integers(1, 10**9)),
    used,
    some_steps(),
    st.builds(
        a_price,
        increment_first_s=increments,
        increment_next_s=increments,
        minimum_s=st.one_of(st.just(0), st.integers(0, 5_000)),
        connect_fee_microusd=st.one_of(st.just(0), rates),
    ),
)
def test_it_is_what_a_search_over_charges_finds(
    balance_cents: int, used_before_s: int, steps: Steps, price: Any
) -> None:
    def covered(duration_s: int) -> bool:
        seconds = billable_seconds(duration_s * 1_000_000, price)
        fee = price.connect_fee_microusd
        return charge_steps(seconds, used_before_s, steps, fee, by_minutes=False)[0] <= balance_cents

    low, high = 0, MAX_DURATION_S
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if covered(middle) else (low, middle - 1)
    stepped = replace(
        price,
        rate_microusd_per_minute=steps[-1].rate_microusd_per_minute,
        steps=steps if len(steps) > 1 else (),
    )
    longest = longest_duration_s(balance_cents, stepped, used_before_s)
    assert longest == max(low, price.increment_first_s)
