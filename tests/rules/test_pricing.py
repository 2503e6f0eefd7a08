import math
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.rules.pricing import (
    Charge,
    Price,
    PriceBook,
    PriceEnd,
    billable_seconds,
    charge_call,
    describe,
    parse_increment,
)

NOON = datetime(2026, 4, 20, 12, tzinfo=UTC)


def a_price(**changes: Any) -> Price:
    """Eight cents a minute, by whole minutes, unless changed."""
    defaults: dict[str, Any] = {
        "tier": "bolt",
        "in_force_from": None,
        "rate_microusd_per_minute": 80_000,
        "increment_first_s": 60,
        "increment_next_s": 60,
        "minimum_s": 0,
        "connect_fee_microusd": 0,
    }
    return Price(**(defaults | changes))


def increments(first: int, following: int) -> dict[str, int]:
    return {"increment_first_s": first, "increment_next_s": following}


@pytest.mark.parametrize(
    ("duration_us", "seconds", "cents", "description"),
    [
        (1, 60, 8, "Call billing: 1 minute × $0.08"),
        (1_000, 60, 8, "Call billing: 1 minute × $0.08"),
        (1_000_000, 60, 8, "Call billing: 1 minute × $0.08"),
        (60_000_000, 60, 8, "Call billing: 1 minute × $0.08"),
        (60_000_001, 120, 16, "Call billing: 2 minutes × $0.08"),
        (60_001_000, 120, 16, "Call billing: 2 minutes × $0.08"),
        (60_010_000, 120, 16, "Call billing: 2 minutes × $0.08"),
        (61_000_000, 120, 16, "Call billing: 2 minutes × $0.08"),
        (119_999_000, 120, 16, "Call billing: 2 minutes × $0.08"),
        (120_000_000, 120, 16, "Call billing: 2 minutes × $0.08"),
        (604_800_000_000, 604_800, 80_640, "Call billing: 10080 minutes × $0.08"),
    ],
)
def test_whole_minutes_at_eight_cents(duration_us: int, seconds: int, cents: int, description: str) -> None:
    assert charge_call(duration_us, a_price()) == Charge(seconds, cents, description)


@pytest.mark.parametrize(
    ("rate_microusd", "minutes", "cents"),
    [
        (5_000, 1, 1),  # 0.5 cents
        (5_000, 2, 1),
        (5_000, 3, 2),  # 1.5
        (5_000, 60, 30),  # and not 60, as rounding each minute would make it
        (12_500, 1, 1),  # 1.25
        (12_500, 2, 3),  # 2.5
        (12_500, 3, 4),  # 3.75
        (12_500, 10, 13),  # 12.5
        (333_333, 1, 33),  # 33.3333
        (333_333, 2, 67),  # 66.6666
        (333_333, 3, 100),  # 99.9999
        (333_333, 10_080, 336_000),  # 335999.664; 332640 if each minute were rounded
        (4_999, 1, 0),
        (0, 5, 0),
    ],
)
def test_fractions_of_a_cent_are_rounded_half_up_once(rate_microusd: int, minutes: int, cents: int) -> None:
    charge = charge_call(minutes * 60_000_000, a_price(rate_microusd_per_minute=rate_microusd))
    assert charge is not None
    assert charge.amount_cents == cents


@pytest.mark.parametrize(
    ("increment", "duration_us", "seconds", "cents"),
    [
        ((1, 1), 1_000, 1, 0),  # 0.1333 cents
        ((1, 1), 36_000_000, 36, 5),  # 4.8
        ((1, 1), 36_000_001, 37, 5),  # 4.9333
        ((6, 6), 1_000_000, 6, 1),  # 0.8
        ((6, 6), 36_000_000, 36, 5),  # 4.8
        ((6, 6), 36_001_000, 42, 6),  # 5.6
        ((30, 6), 1_000_000, 30, 4),
        ((30, 6), 30_000_000, 30, 4),
        ((30, 6), 30_001_000, 36, 5),  # 4.8
        ((30, 6), 36_000_001, 42, 6),  # 5.6
        ((60, 1), 61_000_000, 61, 8),  # 8.1333
        ((60, 30), 60_001_000, 90, 12),
        ((86_400, 86_400), 1_000_000, 86_400, 11_520),
    ],
)
def test_increments(increment: tuple[int, int], duration_us: int, seconds: int, cents: int) -> None:
    charge = charge_call(duration_us, a_price(**increments(*increment)))
    assert charge is not None
    assert (charge.billable_seconds, charge.amount_cents) == (seconds, cents)


@pytest.mark.parametrize(
    ("increment", "minimum_s", "duration_us", "seconds"),
    [
        ((1, 1), 30, 1_000, 30),
        ((1, 1), 30, 30_000_000, 30),
        ((1, 1), 30, 30_000_001, 31),
        ((6, 6), 30, 5_000_000, 30),
        ((6, 6), 31, 5_000_000, 36),
        ((30, 6), 30, 31_000_000, 36),
        ((60, 60), 30, 5_000_000, 60),
        ((60, 60), 61, 5_000_000, 120),
    ],
)
def test_a_minimum(increment: tuple[int, int], minimum_s: int, duration_us: int, seconds: int) -> None:
    assert billable_seconds(duration_us, a_price(minimum_s=minimum_s, **increments(*increment))) == seconds


@pytest.mark.parametrize(
    ("fee_microusd", "rate_microusd", "increment", "duration_us", "cents"),
    [
        (50_000, 80_000, (60, 60), 60_000_000, 13),
        (50_000, 80_000, (60, 60), 60_001_000, 21),
        (5_000, 0, (60, 60), 1_000_000, 1),  # half a cent
        (4_999, 0, (60, 60), 1_000_000, 0),
        (2_500, 10_000, (1, 1), 15_000_000, 1),  # a quarter of a cent twice: each alone would be nothing
        (5_000, 5_000, (60, 60), 60_000_000, 1),  # half a cent twice: each alone would be a cent
        (5_000, 1, (1, 1), 1_000_000, 1),
        (4_999, 60, (1, 1), 1_000_000, 1),  # the sixtieth part of 60 millionths makes exactly half a cent
        (4_999, 59, (1, 1), 1_000_000, 0),
    ],
)
def test_a_connect_fee_is_added_before_the_one_rounding(
    fee_microusd: int, rate_microusd: int, increment: tuple[int, int], duration_us: int, cents: int
) -> None:
    price = a_price(
        connect_fee_microusd=fee_microusd, rate_microusd_per_minute=rate_microusd, **increments(*increment)
    )
    charge = charge_call(duration_us, price)
    assert charge is not None
    assert charge.amount_cents == cents


@pytest.mark.parametrize(
    "price",
    [a_price(), a_price(minimum_s=30), a_price(connect_fee_microusd=1_000_000), a_price(**increments(1, 1))],
)
def test_a_call_of_0_seconds_costs_nothing(price: Price) -> None:
    assert charge_call(0, price) is None
    assert billable_seconds(0, price) == 0


def test_a_charge_that_rounds_to_0_is_still_a_charge() -> None:
    assert charge_call(1_000_000, a_price(rate_microusd_per_minute=0)) == Charge(
        60, 0, "Call billing: 1 minute × $0.00"
    )


def test_a_negative_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="duration_us"):
        charge_call(-1, a_price())


def test_the_dearest_call_fits_64_bits() -> None:
    dearest = a_price(
        rate_microusd_per_minute=10**12,
        connect_fee_microusd=10**12,
        minimum_s=604_800,
        **increments(86_400, 86_399),
    )
    charge = charge_call(604_800_000_000, dearest)
    assert charge is not None
    assert charge.amount_cents < 2**63


@pytest.mark.parametrize(
    ("seconds", "rate_microusd", "increment", "description"),
    [
        (60, 80_000, (60, 60), "Call billing: 1 minute × $0.08"),
        (120, 80_000, (60, 60), "Call billing: 2 minutes × $0.08"),
        (60, 5_000, (60, 60), "Call billing: 1 minute × $0.005"),
        (660, 1_000_000, (60, 60), "Call billing: 11 minutes × $1.00"),
        (36, 80_000, (6, 6), "Call billing: 36 seconds × $0.08/min"),
        (1, 80_000, (1, 1), "Call billing: 1 second × $0.08/min"),
        (120, 12_500, (60, 1), "Call billing: 120 seconds × $0.0125/min"),
        (60, 333_333, (30, 60), "Call billing: 60 seconds × $0.333333/min"),
    ],
)
def test_descriptions(seconds: int, rate_microusd: int, increment: tuple[int, int], description: str) -> None:
    price = a_price(rate_microusd_per_minute=rate_microusd, **increments(*increment))
    assert describe(seconds, price) == description


@given(
    duration_us=st.integers(0, 604_800_000_000) | st.integers(0, 200_000_000),
    rate_microusd=st.integers(0, 10**12) | st.sampled_from([5_000, 12_500, 80_000, 333_333]),
    first=st.integers(1, 86_400) | st.sampled_from([1, 6, 30, 60]),
    following=st.integers(1, 86_400) | st.sampled_from([1, 6, 30, 60]),
    minimum_s=st.integers(0, 604_800) | st.just(0),
    fee_microusd=st.integers(0, 10**12) | st.just(0),
)
@settings(deadline=None)
def test_charges_agree_with_fractions(
    duration_us: int, rate_microusd: int, first: int, following: int, minimum_s: int, fee_microusd: int
) -> None:
    price = a_price(
        rate_microusd_per_minute=rate_microusd,
        minimum_s=minimum_s,
        connect_fee_microusd=fee_microusd,
        **increments(first, following),
    )
    charge = charge_call(duration_us, price)
    if duration_us == 0:
        assert charge is None
        return
    longest = max(Fraction(duration_us, 10**6), Fraction(minimum_s))
    steps = max(0, math.ceil((longest - first) / following))
    seconds = first + steps * following
    usd = Fraction(fee_microusd, 10**6) + Fraction(seconds, 60) * Fraction(rate_microusd, 10**6)
    assert charge is not None
    assert charge.billable_seconds == seconds
    assert charge.amount_cents == math.floor(usd * 100 + Fraction(1, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_microusd_per_minute", -1),
        ("rate_microusd_per_minute", 10**12 + 1),
        ("increment_first_s", 0),
        ("increment_first_s", 86_401),
        ("increment_next_s", 0),
        ("increment_next_s", 86_401),
        ("minimum_s", -1),
        ("minimum_s", 604_801),
        ("connect_fee_microusd", -1),
        ("connect_fee_microusd", 10**12 + 1),
        ("in_force_from", datetime(2026, 4, 20)),  # noqa: DTZ001 - the missing offset is the point
        ("tier", ""),
        ("tier", "Bolt"),
        ("tier", "-bolt"),
        ("tier", ".bolt"),
        ("tier", "_bolt"),
        ("tier", "bolt\n"),
        ("tier", "storm extra"),
        ("tier", "bölt"),
        ("tier", "b" * 65),
    ],
)
def test_a_price_that_cannot_be_charged_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} must "):
        a_price(**{field: value})


@pytest.mark.parametrize("tier", ["b", "7", "storm-base", "storm_extra.v2", "b" * 64])
def test_tier_names(tier: str) -> None:
    assert a_price(tier=tier).tier == tier


@pytest.mark.parametrize(
    ("text", "increment"),
    [("60/60", (60, 60)), ("1/1", (1, 1)), ("30/6", (30, 6)), ("86400/86400", (86_400, 86_400))],
)
def test_an_increment_is_read(text: str, increment: tuple[int, int]) -> None:
    assert parse_increment(text) == increment


@pytest.mark.parametrize(
    "text",
    [
        *("", "60", "60/", "/60", "0/60", "60/0", "-1/60", "60/60/60", "60 / 60", "60/60\n", "1.5/1", "٦/٦"),
        *("86401/1", "1/86401", "1" * 5000 + "/1"),
    ],
)
def test_what_is_no_increment_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match="FIRST/NEXT in whole seconds"):
        parse_increment(text)


def test_a_call_is_priced_with_the_price_in_force_when_it_started() -> None:
    old, new = a_price(), a_price(in_force_from=NOON, rate_microusd_per_minute=100_000)
    book = PriceBook(7, [new, old])
    ended_at, duration = NOON + timedelta(seconds=30), timedelta(seconds=60)
    assert book.in_force("bolt", None, ended_at) is new
    assert book.in_force("bolt", None, ended_at - duration) is old
    charge = charge_call(60_000_000, old)
    assert charge is not None
    assert charge.amount_cents == 8
    assert book.in_force("bolt", None, NOON - timedelta(microseconds=1)) is old
    assert book.in_force("bolt", None, NOON) is new
    assert book.in_force("bolt", None, NOON.astimezone(timezone(timedelta(hours=2)))) is new


@given(
    starts=st.sets(st.integers(-400, 400), max_size=5),
    since_ever=st.booleans(),
    ended=st.integers(-600, 600),
    duration_s=st.integers(0, 604_800),
)
@settings(deadline=None)
def test_a_call_has_the_price_in_force_at_its_start_however_long_it_was(
    starts: set[int], since_ever: bool, ended: int, duration_s: int
) -> None:
    prices = [a_price(in_force_from=NOON + timedelta(hours=hours)) for hours in starts]
    book = PriceBook(1, prices + [a_price()] * since_ever)
    ended_at = NOON + timedelta(hours=ended)
    expected = book.in_force("bolt", None, ended_at - timedelta(seconds=duration_s))
    assert book.price_of("bolt", 1, ended_at, duration_s * 1_000_000) == expected
    assert book.price_of("storm", 1, ended_at, 0) is None


def test_a_call_that_started_as_a_price_came_into_force_has_that_price() -> None:
    new = a_price(in_force_from=NOON)
    book = PriceBook(1, [a_price(), new])
    assert book.price_of("bolt", 1, NOON + timedelta(days=7), 604_800_000_000) == new
    assert book.price_of("bolt", 1, NOON + timedelta(days=7, microseconds=-1), 604_800_000_000) == a_price()


def test_a_price_may_come_into_force_at_the_end_of_time() -> None:
    book = PriceBook(1, [a_price(), a_price(in_force_from=datetime.max.replace(tzinfo=UTC))])
    assert book.price_of("bolt", 1, NOON, 1) == a_price()


def test_the_book_knows_its_version_and_its_tiers() -> None:
    book = PriceBook(7, [a_price(), a_price(tier="spark", in_force_from=NOON)])
    assert book.version == 7
    assert "bolt" in book
    assert "storm" not in book
    assert book.in_force("storm", None, NOON) is None
    assert book.in_force("spark", None, NOON - timedelta(seconds=1)) is None
    assert book.in_force("bolt", None, datetime.min.replace(tzinfo=UTC)) is not None
    assert "bolt" not in PriceBook(0, [])


@pytest.mark.parametrize("start", [None, NOON])
def test_two_prices_cannot_start_at_one_instant(start: datetime | None) -> None:
    with pytest.raises(ValueError, match="two prices"):
        PriceBook(1, [a_price(in_force_from=start), a_price(in_force_from=start, minimum_s=1)])


@given(
    starts=st.sets(st.integers(-50, 50)),
    since_ever=st.booleans(),
    asked=st.integers(-60, 60),
    shuffle=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_the_book_finds_what_a_search_through_all_prices_finds(
    starts: set[int], since_ever: bool, asked: int, shuffle: Random
) -> None:
    prices = [a_price(in_force_from=NOON + timedelta(hours=hours)) for hours in starts]
    expected = max((hours for hours in starts if hours <= asked), default=None)
    if since_ever:
        prices.append(a_price(in_force_from=None))
    shuffle.shuffle(prices)
    found = PriceBook(1, prices).in_force("bolt", None, NOON + timedelta(hours=asked))
    if expected is not None:
        assert found is not None
        assert found.in_force_from == NOON + timedelta(hours=expected)
    else:
        assert found == (a_price() if since_ever else None)


@given(data=st.data(), at=st.integers(-12, 12))
@settings(deadline=None)
def test_an_orgs_price_counts_where_one_is_in_force_else_the_tiers(data: st.DataObject, at: int) -> None:
    """Against a search through all of them; whether the book was read at once or brought up to date."""
    hour = timedelta(hours=1)
    owners = st.sampled_from([("bolt", None), ("bolt", 1), ("bolt", 2), ("reef", 1), ("reef", None)])
    starts = data.draw(st.sets(st.tuples(owners, st.integers(-9, 9)), max_size=14))
    listed: list[Price | PriceEnd] = [a_price(tier=tier) for tier in ("bolt", "reef")]
    for number, ((tier, org_id), hours) in enumerate(sorted(starts, key=str)):
        if org_id is not None and data.draw(st.booleans()):
            listed.append(PriceEnd(tier, org_id, NOON + hours * hour))
        else:
            listed.append(
                a_price(
                    tier=tier,
                    org_id=org_id,
                    in_force_from=NOON + hours * hour,
                    rate_microusd_per_minute=number,
                )
            )

    def searched(tier: str, org_id: int | None) -> Price | PriceEnd | None:
        mine = [
            each
            for each in listed
            if (each.tier, each.org_id) == (tier, org_id)
            and (each.in_force_from is None or each.in_force_from <= NOON + at * hour)
        ]
        return max(mine, key=lambda each: (each.in_force_from is not None, each.in_force_from), default=None)

    changed = data.draw(st.sets(owners))
    before: list[Price | PriceEnd] = [
        each
        for each in listed
        if (each.tier, each.org_id) not in changed
        or (each.in_force_from is not None and data.draw(st.booleans()))
    ]
    cancelled = NOON + 10 * hour  # in force from when no price that is listed begins
    before += [
        a_price(tier=tier, org_id=org_id, in_force_from=cancelled)
        for tier, org_id in changed
        if data.draw(st.booleans())
    ]
    after = [each for each in listed if (each.tier, each.org_id) in changed]
    book = PriceBook(1, listed)
    updated = PriceBook(1, before).changed(2, after, changed)
    assert (updated._tiers, updated._orgs, updated.version) == (book._tiers, book._orgs, 2)
    for tier in ("bolt", "reef"):
        for org_id in (1, 2, 3, None):
            own = None if org_id is None else searched(tier, org_id)
            expected = own if isinstance(own, Price) else searched(tier, None)
            assert book.in_force(tier, org_id, NOON + at * hour) == expected
            if org_id is not None:
                assert (
                    book.price_of(tier, org_id, NOON + at * hour + timedelta(days=3), 259_200_000_000)
                    == expected
                )


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_last_price_of_any_org_may_go_beside_one_that_came_and_went(order: tuple[int, int]) -> None:
    """Org 1's is cancelled; org 2's was set and cancelled since the book was read."""
    book = PriceBook(1, [a_price(), a_price(org_id=1, rate_microusd_per_minute=1)])
    updated = book.changed(2, [], [("bolt", org_id) for org_id in order])
    assert updated.in_force("bolt", 1, NOON) == a_price()
    assert updated._orgs == {}


def test_all_prices_of_a_span_of_time() -> None:
    """Both ends included; the org's own in place of the tier's while it is in force, and no price twice."""
    second = timedelta(seconds=1)
    tiers: list[Price | PriceEnd] = [a_price(), a_price(in_force_from=NOON + 5 * second, minimum_s=1)]
    own: list[Price | PriceEnd] = [
        a_price(org_id=1, in_force_from=NOON + 2 * second, minimum_s=2),
        PriceEnd("bolt", 1, NOON + 4 * second),
    ]
    book = PriceBook(1, [*tiers, *own])

    def between(first: int, last: int, org_id: int | None = 1) -> list[Price]:
        return book.in_force_between("bolt", org_id, NOON + first * second, NOON + last * second)

    assert between(0, 1) == [tiers[0]]
    assert between(0, 2) == [tiers[0], own[0]]
    assert between(2, 3) == [own[0]]
    assert between(0, 9) == [tiers[0], own[0], tiers[1]]
    assert between(0, 5, org_id=2) == between(0, 5, org_id=None) == tiers
    assert book.in_force_between("storm", 1, NOON, NOON) == []


def test_a_tier_that_came_and_went_since_the_book_was_read_is_unknown() -> None:
    assert PriceBook(1, [a_price()]).changed(2, [], [("thunder", None)]).tiers() == ["bolt"]
