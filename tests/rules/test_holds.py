"""What is held, against ten lines of exact fractions, and against the charge itself."""

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metering.rules.events import MAX_DURATION_S
from metering.rules.holds import at_dearest, hold_cents, longest_covered_s
from metering.rules.pricing import Price, charge_call
from metering.rules.steps import Step
from tests.rules.test_pricing import a_price, increments

PRICES = st.builds(
    a_price,
    rate_microusd_per_minute=st.integers(0, 20) | st.integers(0, 500_000) | st.integers(0, 10**12),
    increment_first_s=st.integers(1, 120) | st.just(86_400),
    increment_next_s=st.integers(1, 120),
    minimum_s=st.just(0) | st.integers(0, 604_800),
    connect_fee_microusd=st.just(0) | st.integers(0, 100_000),
)


def exact_cents(seconds: int, price: Price) -> int:
    """Ten lines, and none of the product's."""
    if seconds == 0:
        return 0
    beyond = max(seconds, price.minimum_s) - price.increment_first_s
    billable = (
        price.increment_first_s
        + max(ceil(Fraction(beyond, price.increment_next_s)), 0) * price.increment_next_s
    )
    usd = Fraction(price.connect_fee_microusd, 10**6)
    usd += Fraction(billable, 60) * Fraction(price.rate_microusd_per_minute, 10**6)
    return floor(usd * 100 + Fraction(1, 2))


@given(st.lists(PRICES, min_size=1, max_size=3), st.integers(0, MAX_DURATION_S))
def test_a_hold_is_the_dearest_charge(prices: list[Price], seconds: int) -> None:
    assert hold_cents(seconds, prices) == max(exact_cents(seconds, price) for price in prices)


@given(
    st.lists(PRICES, min_size=1, max_size=3),
    st.integers(1, MAX_DURATION_S),
    st.integers(0, MAX_DURATION_S * 1_000_000),
    st.data(),
)
def test_no_call_within_what_was_held_costs_more(
    prices: list[Price], seconds: int, duration_us: int, data: st.DataObject
) -> None:
    """Microseconds too, and whichever of the prices counts in the end."""
    duration_us = min(duration_us, seconds * 1_000_000)
    charge = charge_call(duration_us, data.draw(st.sampled_from(prices)))
    assert charge is None or charge.amount_cents <= hold_cents(seconds, prices)


@given(st.lists(PRICES, min_size=1, max_size=3), st.integers(0, 50) | st.integers(-5, 10**9))
@example([a_price()], 7)
def test_the_longest_call_is_covered_and_a_longer_one_is_not(
    prices: list[Price], available_cents: int
) -> None:
    longest = longest_covered_s(available_cents, prices)
    assert 0 <= longest <= MAX_DURATION_S
    if longest:
        assert max(exact_cents(longest, price) for price in prices) <= available_cents
        assert longest >= min(price.increment_first_s for price in prices)
    if longest < MAX_DURATION_S:
        assert max(exact_cents(longest + 1, price) for price in prices) > available_cents


@pytest.mark.parametrize(
    ("available_cents", "changes", "seconds"),
    [
        (8, {}, 60),
        (15, {}, 60),
        (16, {}, 120),
        (7, {}, 0),  # the gate would let it start; a hold doesn't
        (0, {}, 0),
        (-1, {}, 0),
        (0, {"rate_microusd_per_minute": 0}, MAX_DURATION_S),  # costs nothing
        (0, {"rate_microusd_per_minute": 0, "connect_fee_microusd": 5_000}, 0),
        (15, {"minimum_s": 90}, 0),
        (16, {"minimum_s": 90}, 120),
        (8, increments(6, 6), 60),
        (8, {"connect_fee_microusd": 4_999}, 60),  # rounded once, to 8
        (8, {"connect_fee_microusd": 5_000}, 0),
        (10**15, {}, MAX_DURATION_S),
    ],
)
def test_what_is_covered(available_cents: int, changes: dict[str, int], seconds: int) -> None:
    assert longest_covered_s(available_cents, [a_price(**changes)]) == seconds


@given(
    st.lists(st.integers(0, 500_000), min_size=2, max_size=5),
    st.integers(0, 100_000),
    st.integers(1, 100_000),
)
def test_steps_count_at_their_dearest_whatever_was_used(rates: list[int], used_s: int, seconds: int) -> None:
    steps = (*(Step(60 * 10 * (nth + 1), rate) for nth, rate in enumerate(rates[:-1])), Step(None, rates[-1]))
    price = replace(a_price(), rate_microusd_per_minute=rates[-1], steps=steps)
    held = hold_cents(seconds, [at_dearest(price)])
    charge = charge_call(seconds * 1_000_000, price, used_s)
    assert charge is not None
    assert charge.amount_cents <= held == hold_cents(seconds, [a_price(rate_microusd_per_minute=max(rates))])


def test_which_of_two_prices_is_dearer_depends_on_the_seconds() -> None:
    fee = a_price(rate_microusd_per_minute=10_000, connect_fee_microusd=200_000)
    rate = a_price(rate_microusd_per_minute=80_000)
    assert [hold_cents(seconds, [fee, rate]) for seconds in (60, 120, 180, 600)] == [21, 22, 24, 80]
    assert longest_covered_s(23, [fee, rate]) == 120
    with pytest.raises(ValueError, match="empty"):
        hold_cents(60, [])
