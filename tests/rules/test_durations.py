"""The longest call that a balance covers, held against the charge itself."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metering.rules.durations import longest_duration_s, to_seconds
from metering.rules.events import MAX_DURATION_S
from metering.rules.pricing import Price, charge_call
from tests.rules.test_pricing import a_price, increments


@pytest.mark.parametrize(
    ("duration_us", "written"),
    [(0, "0"), (60_000_000, "60"), (75_500_000, "75.5"), (1, "1e-06"), (86_399_999_999, "86399.999999")],
)
def test_a_duration_in_json_has_a_point_only_where_it_needs_one(duration_us: int, written: str) -> None:
    assert json.dumps(to_seconds(duration_us)) == written


def covered(balance_cents: int, duration_s: int, price: Price) -> bool:
    charge = charge_call(duration_s * 1_000_000, price)
    return charge is None or charge.amount_cents <= balance_cents


def search(balance_cents: int, price: Price) -> int:
    """The same by halving: a longer call never costs less."""
    low, high = 0, MAX_DURATION_S
    while low < high:
        middle = (low + high + 1) // 2
        if covered(balance_cents, middle, price):
            low = middle
        else:
            high = middle - 1
    return low


@pytest.mark.parametrize(
    ("balance_cents", "changes", "seconds"),
    [
        (8, {}, 60),
        (15, {}, 60),
        (16, {}, 120),
        (100, {}, 720),
        (7, {}, 60),  # doesn't cover it, but the gate is open
        (1, {}, 60),
        (0, {}, 0),
        (-1, {}, 0),
        (10**15, {}, MAX_DURATION_S),
        (1, {"rate_microusd_per_minute": 0}, MAX_DURATION_S),
        (1, {"rate_microusd_per_minute": 0, "connect_fee_microusd": 14_999}, MAX_DURATION_S),
        (1, {"rate_microusd_per_minute": 0, "connect_fee_microusd": 15_000}, 60),
        (8, increments(6, 6), 60),  # 8 tenths of a cent each
        (8, increments(30, 6), 60),
        (1, increments(30, 6), 30),
        (16, {"minimum_s": 90}, 120),
        (15, {"minimum_s": 90}, 60),
        (16, {"minimum_s": 120}, 120),
        (
            7,
            {"rate_microusd_per_minute": 642_857, **increments(1, 1)},
            7,
        ),  # to the last sixtieth of a micro-USD
        (20, {"connect_fee_microusd": 50_000}, 60),
        (21, {"connect_fee_microusd": 50_000}, 120),
        (10, {"rate_microusd_per_minute": 5_000}, 20 * 60),  # 21 minutes are 10.5 cents, charged as 11
        (5, increments(86_400, 86_400), 86_400),
        (10**9, increments(86_400, 86_399), MAX_DURATION_S),
    ],
)
def test_by_hand(balance_cents: int, changes: dict[str, int], seconds: int) -> None:
    assert longest_duration_s(balance_cents, a_price(**changes)) == seconds


rates = st.one_of(st.integers(0, 100), st.integers(0, 2_000_000), st.integers(0, 10**12))
seconds = st.one_of(st.integers(1, 90), st.integers(1, 86_400))
balances = st.one_of(st.integers(-5, 50), st.integers(1, 100_000), st.integers(1, 2**62))


@given(
    balances,
    st.builds(
        a_price,
        rate_microusd_per_minute=rates,
        increment_first_s=seconds,
        increment_next_s=seconds,
        minimum_s=st.one_of(st.integers(0, 200), st.integers(0, MAX_DURATION_S)),
        connect_fee_microusd=rates,
    ),
)
@example(1, a_price(rate_microusd_per_minute=1, increment_first_s=1, increment_next_s=1))
def test_it_is_what_a_search_over_charges_finds(balance_cents: int, price: Price) -> None:
    found = search(balance_cents, price)
    longest = longest_duration_s(balance_cents, price)
    if balance_cents <= 0:
        assert longest == 0
    elif found == 0:
        assert longest == price.increment_first_s
    else:
        assert longest == max(found, price.increment_first_s) == found
