"""Prices with steps, in the debit's transaction: held against ten lines of exact fractions, to the cent."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import floor
from random import Random
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from db.audit.full import run_audit
from db.ledger.monthly_usage import read_usage
from db.ledger.post_calls import Posted, StalePriceBookError, post_calls
from db.ledger.price_book import load_price_book, refresh_price_book
from db.ledger.prices import cancel_price, clear_price, list_org_prices, list_prices, set_price
from db.postgres.clock import read_clock
from db.postgres.engine import transaction
from metering.rules.events import CallEvent
from metering.rules.pricing import Price, PriceBook, PriceEnd
from metering.rules.steps import parse_steps
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.ledger import make_orgs
from tests.spine.billing import assert_sound, event, push, running_meters
from tests.waiting import wait_until
from workers.batch import ParsedEntry, price_entries
from workers.stream import backlog

MAY = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TIERS = ("bolt", "reef")


def stepped(*texts: str, start: datetime | None = None, org_id: int | None = None, **terms: Any) -> Price:
    steps = parse_steps(texts)
    fields = {
        "increment_first_s": 60,
        "increment_next_s": 60,
        "minimum_s": 0,
        "connect_fee_microusd": 0,
        **terms,
    }
    rate = steps[-1].rate_microusd_per_minute
    return Price("bolt", start, rate, **fields, org_id=org_id, steps=steps if len(steps) > 1 else ())


def call(
    call_id: int, start: datetime, minutes: float = 1, *, org_id: int = 1, tier: str = "bolt"
) -> CallEvent:
    duration_us = round(minutes * 60_000_000)
    end = start + timedelta(microseconds=duration_us)
    return CallEvent(call_id, org_id, tier, "outbound", duration_us, end, None, None, "{}")


def bill(engine: Engine, calls: Sequence[CallEvent], book: PriceBook | None = None) -> Posted:
    """As a meter does that holds such a price book, in one transaction."""
    with transaction(engine) as connection:
        book = book or load_price_book(connection)
    batch = price_entries([ParsedEntry(f"1-{each.call_id}", b"", each) for each in calls], book)
    with transaction(engine) as connection:
        return post_calls(connection, batch.calls, batch.rejected, price_book_version=batch.book_version)


def put(engine: Engine, *prices: Price | PriceEnd) -> None:
    """Set well before they are in force."""
    with transaction(engine) as connection:
        for price in prices:
            set_at = (price.in_force_from or MAY) - DAY
            if isinstance(price, Price):
                set_price(connection, price, lambda at=set_at: at)  # type: ignore[misc]
            else:
                clear_price(connection, price.tier, price.org_id, price.in_force_from, lambda at=set_at: at)  # type: ignore[misc]


def billed(engine: Engine) -> list[tuple[int, str]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT -amount_cents, description FROM transactions WHERE kind = 'debit' ORDER BY id")
        )
        return [(cents, description.removeprefix("Call billing: ")) for cents, description in rows]


def usage(engine: Engine) -> dict[tuple[int, str, str], int]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT org_id, tier, month::text, billable_seconds FROM monthly_usage")
        )
        return {tuple(row[:3]): row[3] for row in rows}


@pytest.fixture
def engine(database: Database) -> Engine:
    make_orgs(database.engine, 1, 2)
    return database.engine


PLAIN = stepped(":0.08")
INCLUDED = ("5:0", "10:0.10", ":0.05")
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

# Prices; the batches in which calls are billed; what each costs, and how it is described.
EDGES: dict[str, tuple[list[Price | PriceEnd], list[list[CallEvent]], list[tuple[int, str]]]] = {
    "across one step": (
        [stepped("5:0", ":0.08")],
        [[call(1, MAY, 12)]],
        [(56, "12 minutes: 5 included, 7 × $0.08")],
    ),
    "across two steps": (
        [stepped(*INCLUDED)],
        [[call(1, MAY, 12)]],
        [(60, "12 minutes: 5 included, 5 × $0.10, 2 × $0.05")],
    ),
    "to a step and on from it": (
        [stepped(*INCLUDED)],
        [[call(1, MAY, 5), call(2, MAY, 5)], [call(3, MAY, 1)]],
        [(0, "5 minutes included"), (50, "5 minutes × $0.10"), (5, "1 minute × $0.05")],
    ),
    "one second past a step": (
        [stepped("1:0.06", ":0.03", increment_first_s=1, increment_next_s=1)],
        [[call(1, MAY, 59 / 60), call(2, MAY, 2 / 60)]],
        [(6, "59 seconds × $0.06/min"), (0, "2 seconds: 1 × $0.06/min, 1 × $0.03/min")],
    ),
    "included minutes with another increment": (
        [stepped("1:0", ":0.60", increment_first_s=30, increment_next_s=6)],
        [[call(1, MAY, 31 / 60), call(2, MAY, 31 / 60)]],
        [(0, "36 seconds included"), (12, "36 seconds: 24 included, 12 × $0.60/min")],
    ),
    "a minimum and a connect fee": (
        [stepped("1:0", ":0.60", minimum_s=90, connect_fee_microusd=10_000)],
        [[call(1, MAY, 0.5)]],
        [(61, "2 minutes: 1 included, 1 × $0.60")],
    ),
    "the month's turn within a call": (
        [stepped("5:0", ":0.08")],
        [[call(1, MAY, 5), call(2, JUNE - SECOND, 3), call(3, JUNE, 6)]],
        [(0, "5 minutes included"), (24, "3 minutes × $0.08"), (8, "6 minutes: 5 included, 1 × $0.08")],
    ),
    "a late call of last month": (
        [stepped("5:0", ":0.08")],
        [[call(1, JUNE, 4)], [call(2, JUNE - DAY, 5)], [call(3, JUNE - DAY, 1), call(4, JUNE, 1)]],
        [
            (0, "4 minutes included"),
            (0, "5 minutes included"),
            (8, "1 minute × $0.08"),
            (0, "1 minute included"),
        ],
    ),
    "another price from a time on": (
        [
            stepped("5:0", ":0.08"),
            stepped("10:0.01", ":0.02", start=MAY + DAY),
            stepped(":0.50", start=MAY + 2 * DAY),
        ],
        [
            [call(1, MAY, 6), call(2, MAY + DAY - SECOND, 1), call(3, MAY + DAY, 5)],
            [call(4, MAY + 2 * DAY, 1), call(5, MAY + DAY, 1)],
        ],
        [
            (8, "6 minutes: 5 included, 1 × $0.08"),
            (8, "1 minute × $0.08"),
            (7, "5 minutes: 3 × $0.01, 2 × $0.02"),
            (50, "1 minute × $0.50"),
            (2, "1 minute × $0.02"),
        ],
    ),
    "a first step in mid-month": (
        [PLAIN, stepped("5:0", ":0.10", start=MAY + DAY)],
        [
            [call(1, MAY, 2)],
            [call(2, MAY, 1), call(3, MAY + DAY, 3), call(4, MAY, 1)],
            [call(5, MAY + DAY, 1)],
        ],
        [
            (16, "2 minutes × $0.08"),
            (8, "1 minute × $0.08"),
            (10, "3 minutes: 2 included, 1 × $0.10"),
            (8, "1 minute × $0.08"),
            (10, "1 minute × $0.10"),
        ],
    ),
    "an org's own steps, and their end": (
        [PLAIN, stepped("2:0", ":0.01", start=MAY + DAY, org_id=1), PriceEnd("bolt", 1, MAY + 2 * DAY)],
        [
            [call(1, MAY + DAY - SECOND, 1), call(2, MAY + DAY, 2), call(3, MAY + 2 * DAY, 1)],
            [call(4, MAY + DAY, 1, org_id=2), call(5, MAY + 2 * DAY - SECOND, 5)],
        ],
        [
            (8, "1 minute × $0.08"),
            (1, "2 minutes: 1 included, 1 × $0.01"),
            (8, "1 minute × $0.08"),
            (5, "5 minutes × $0.01"),
            (8, "1 minute × $0.08"),
        ],
    ),
    "an org's plain price in place of the tier's steps": (
        [stepped("5:0", ":0.08"), stepped(":0.02", start=MAY + DAY, org_id=1)],
        [[call(1, MAY, 4), call(2, MAY + DAY, 4), call(3, MAY, 1), call(4, MAY, 1, org_id=2)]],
        [
            (0, "4 minutes included"),
            (8, "4 minutes × $0.02"),
            (8, "1 minute × $0.08"),
            (0, "1 minute included"),
        ],
    ),
    "calls of 0 seconds and repeats use nothing": (
        [stepped("5:0", ":0.08")],
        [[call(1, MAY, 0), call(2, MAY, 4), call(2, MAY, 4)], [call(2, MAY, 4), call(3, MAY, 1)]],
        [(0, "4 minutes included"), (0, "1 minute included")],
    ),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges(engine: Engine, edge: str) -> None:
    prices, batches, expected = EDGES[edge]
    put(engine, *prices)
    for batch in batches:
        bill(engine, batch)
    assert billed(engine) == expected
    report = run_audit(engine)
    assert report.passed, report.violations


def test_use_is_counted_only_where_steps_counted(engine: Engine) -> None:
    put(engine, PLAIN, replace(PLAIN, tier="reef"), stepped("5:0", ":0.08", start=MAY + DAY))
    bill(engine, [call(1, MAY), call(2, MAY + DAY, tier="reef")])
    assert usage(engine) == {}
    bill(engine, [call(3, MAY + DAY, 2), call(4, JUNE, 1), call(5, MAY, org_id=2)])
    assert usage(engine) == {(1, "bolt", "2026-05-01"): 180, (1, "bolt", "2026-06-01"): 60}
    with transaction(engine) as connection:
        asked = [(1, MAY), (1, JUNE), (2, MAY), (2, JUNE), (1, JUNE - SECOND)]
        assert [read_usage(connection, org_id, "bolt", at) for org_id, at in asked] == [180, 60, 60, 0, 180]


@pytest.mark.parametrize("refreshed", [False, True])
def test_use_by_steps_that_were_cancelled_afterwards_is_still_counted(
    engine: Engine, refreshed: bool
) -> None:
    """A call may start ahead of the clock, and be priced by what is cancelled only then."""
    put(engine, PLAIN)
    with transaction(engine) as connection:
        now, before = read_clock(connection), load_price_book(connection)
    starts = [now + timedelta(seconds=seconds) for seconds in (100, 160)]
    steps = [stepped("2:0", ":0.08", start=start) for start in starts]
    with transaction(engine) as connection:
        set_price(connection, steps[0], lambda: now)
    bill(engine, [call(1, starts[0], 1)])
    with transaction(engine) as connection:
        cancel_price(connection, "bolt", None, starts[0], lambda: now)
        book = refresh_price_book(connection, before) if refreshed else None
    bill(engine, [call(2, starts[0], 1)], book)
    with transaction(engine) as connection:
        set_price(connection, steps[1], lambda: now)
        book = refresh_price_book(connection, book) if book else None
    bill(engine, [call(3, starts[1], 1)], book)
    assert billed(engine) == [(0, "1 minute included"), (8, "1 minute × $0.08"), (8, "1 minute × $0.08")]
    assert not run_audit(engine).violations


def raise_after(posted: Posted) -> None:
    assert len(posted.debits) == 1
    raise ZeroDivisionError


def test_a_batch_that_fails_has_used_nothing(engine: Engine) -> None:
    put(engine, stepped("5:0", ":0.08"))
    with transaction(engine) as connection:
        book = load_price_book(connection)
    batch = price_entries([ParsedEntry("1-1", b"", call(1, MAY, 4))], book)
    with pytest.raises(StalePriceBookError), transaction(engine) as connection:
        post_calls(connection, batch.calls, [], price_book_version=book.version - 1)
    with pytest.raises(ZeroDivisionError), transaction(engine) as connection:
        raise_after(post_calls(connection, batch.calls, [], price_book_version=book.version))
    assert usage(engine) == {}
    bill(engine, [call(2, MAY, 6)])
    assert billed(engine) == [(8, "6 minutes: 5 included, 1 × $0.08")]


@dataclass(frozen=True)
class Model:
    """Ten lines of exact fractions: what each call costs, given the calls before it in order of posting."""

    prices: Sequence[Price | PriceEnd]

    def charges(self, calls: Sequence[CallEvent]) -> list[int]:
        used: dict[object, int] = defaultdict(int)
        return [cents for each in calls if (cents := self._charge(each, used)) is not None]

    def _charge(self, event: CallEvent, used: dict[object, int]) -> int | None:
        start = event.ended_at - timedelta(microseconds=event.duration_us)
        price = self._price(event.tier, event.org_id, start) or self._price(event.tier, None, start)
        if not event.duration_us or price is None:
            return None
        seconds, wanted = (
            price.increment_first_s,
            max(Fraction(event.duration_us, 10**6), Fraction(price.minimum_s)),
        )
        while Fraction(seconds) < wanted:
            seconds += price.increment_next_s
        key = (event.org_id, event.tier, start.year, start.month)
        cost = Fraction(price.connect_fee_microusd, 10_000)
        for second in range(used[key], used[key] + seconds):
            rate = next((rate for until_s, rate in price.steps if until_s is None or second < until_s), None)
            cost += Fraction(price.rate_microusd_per_minute if rate is None else rate, 60 * 10_000)
        used[key] += seconds
        return floor(cost + Fraction(1, 2))

    def _price(self, tier: str, org_id: int | None, at: datetime) -> Price | None:
        mine = [each for each in self.prices if (each.tier, each.org_id) == (tier, org_id)]
        past = [each for each in mine if each.in_force_from is None or each.in_force_from <= at]
        last = max(
            past, key=lambda each: each.in_force_from or datetime.min.replace(tzinfo=UTC), default=None
        )
        return last if isinstance(last, Price) else None


STEPS = st.lists(st.integers(1, 12), max_size=3, unique=True).flatmap(
    lambda ends: st.lists(
        st.sampled_from(["0", "0.05", "0.013", "0.08"]), min_size=len(ends) + 1, max_size=len(ends) + 1
    ).map(
        lambda rates: (
            *(f"{end}:{rate}" for end, rate in zip(sorted(ends), rates[:-1], strict=True)),
            f":{rates[-1]}",
        )
    )
)
TERMS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"increment_first_s": 30, "increment_next_s": 6}, {"minimum_s": 90}, {"connect_fee_microusd": 4_000}]
)
HOURS = st.integers(0, 24 * 40)  # from the last of April to June


@st.composite
def price_lists(draw: st.DrawFn) -> list[Price | PriceEnd]:
    first: list[Price | PriceEnd] = [
        replace(stepped(*draw(STEPS), **draw(TERMS)), tier=tier) for tier in TIERS
    ]
    for hours in sorted(draw(st.sets(HOURS, max_size=5))):
        start, tier, org_id = (
            MAY - DAY + hours * timedelta(hours=1),
            draw(st.sampled_from(TIERS)),
            draw(st.sampled_from([None, 1, 2])),
        )
        before = [each for each in first if (each.tier, each.org_id) == (tier, org_id)]
        has_own = org_id is not None and bool(before) and isinstance(before[-1], Price)
        if has_own and org_id is not None and draw(st.booleans()):
            first.append(PriceEnd(tier, org_id, start))
        else:
            first.append(replace(stepped(*draw(STEPS), start=start, org_id=org_id, **draw(TERMS)), tier=tier))
    return first


CALLS = st.lists(
    st.tuples(
        HOURS, st.sampled_from([0, 1, 59, 60, 61, 200, 601]), st.sampled_from([1, 2]), st.sampled_from(TIERS)
    ),
    max_size=12,
)
EMPTY = """
    SET session_replication_role = replica;
    DELETE FROM transactions; DELETE FROM monthly_usage; DELETE FROM prices; DELETE FROM tiers;
    UPDATE accounts SET balance_cents = 0, version = 0, transaction_count = 0, last_posted_at = NULL;
"""


@pytest.mark.timeout(600)  # the long one takes two minutes where nobody else works
@pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.long)])
def test_every_charge_is_that_of_exact_fractions(database: Database, engine: Engine, examples: int) -> None:
    """Random prices with and without steps, of tiers and orgs, and calls of three months in any order, in batches of any size."""

    @given(price_lists(), CALLS, st.randoms(use_true_random=False))
    @settings(max_examples=examples, deadline=None)
    def check(prices: list[Price | PriceEnd], drawn: list[tuple[int, int, int, str]], source: Random) -> None:
        execute_as(database.admin_url, EMPTY)
        put(engine, *prices)
        calls = [
            call(number, MAY - DAY + hours * timedelta(hours=1), seconds / 60, org_id=org_id, tier=tier)
            for number, (hours, seconds, org_id, tier) in enumerate(drawn, start=1)
        ]
        left = list(calls)
        posted = []
        while left:
            size = source.randint(1, 5)
            posted += sorted(left[:size], key=lambda each: each.org_id)
            bill(engine, left[:size])
            left = left[size:]
        assert [cents for cents, _ in billed(engine)] == Model(prices).charges(posted)
        report = run_audit(engine)
        assert report.passed, report.violations

    check()


def test_several_meters_count_every_call_once(
    database: Database, engine: Engine, redis_client: redis.Redis
) -> None:
    """Batches of any size, orgs and months among them, each call pushed twice: use is counted in the order of posting."""
    put(engine, stepped("90:0", "200:0.013", ":0.08"), replace(PLAIN, tier="reef"))
    put(engine, stepped("30:0.02", ":0.01", start=MAY + 9 * DAY, org_id=1))
    source = Random(18)
    calls = [
        call(
            number,
            MAY + source.randint(-2, 40) * DAY,
            source.choice([0.5, 1, 3, 7]),
            org_id=source.choice([1, 2]),
            tier=source.choice(TIERS),
        )
        for number in range(1, 301)
    ]
    events = [
        event(
            call_id=each.call_id,
            org_id=each.org_id,
            tier=each.tier,
            duration_seconds=each.duration_us / 1_000_000,
            ended_at=each.ended_at.isoformat(),
        )
        for each in calls
    ] * 2
    source.shuffle(events)
    with running_meters(engine, redis_client, meters=3, batch_limit=17):
        for first in range(0, len(events), 60):
            push(redis_client, events[first : first + 60])
        wait_until(lambda: backlog(redis_client).length == 0, limit_s=60)
    by_id = {each.call_id: each for each in calls}
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT call_id, -amount_cents FROM transactions ORDER BY id")).all()
        prices = load_all(connection)
    assert len(rows) == 300
    assert [cents for _, cents in rows] == Model(prices).charges([by_id[call_id] for call_id, _ in rows])
    assert_sound(engine)


def load_all(connection: Connection) -> list[Price | PriceEnd]:
    return [*list_prices(connection), *list_org_prices(connection)]
