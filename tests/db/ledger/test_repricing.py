"""Re-pricing: what calls would have cost, and adjustments once per key; held against exact fractions."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import count
from math import floor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from db.audit.full import run_audit
from db.ledger import repricing_passes
from db.ledger.adjustments import adjust
from db.ledger.repriced_calls import RepricedCalls
from db.ledger.repricing_passes import apply_repricing, show_repricing
from db.ledger.repricings import RepricingError, begin_repricing
from db.models.errors import UnknownOrgError
from db.operators.log import Actor
from db.postgres.engine import transaction
from metering.rules.pricing import Price
from metering.rules.repricing import RepricingTerms, whole_months
from metering.rules.steps import parse_steps
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.ledger import a_call, make_orgs, make_prices, pay_in, post
from tests.payments.together import together

APRIL = datetime(2026, 4, 1, tzinfo=UTC)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
SOMEBODY = Actor("somebody", "login")
BOLT = Price("bolt", None, 80_000, 60, 60, 0, 0)
FINE = Price("fine", None, 333_333, 30, 6, 45, 10_000)
MINUTE = timedelta(minutes=1)
CENT_MICROUSD = 10_000

_call_ids = count(1)


def terms(rate: int = 60_000, **changes: Any) -> RepricingTerms:
    """All of April's calls of tier bolt, at six cents."""
    return replace(RepricingTerms("bolt", APRIL, MAY, None, rate), **changes)


def steps(*texts: str, **changes: Any) -> RepricingTerms:
    parsed = parse_steps(texts)
    return terms(parsed[-1].rate_microusd_per_minute, steps=parsed, **changes)


def call(engine: Engine, org_id: int, started_at: datetime, seconds: float, tier: str = "bolt") -> int:
    """Bill a call; give its id."""
    call_id, duration = next(_call_ids), timedelta(seconds=seconds)
    post(
        engine,
        [a_call(org_id, call_id, tier, round(duration / timedelta(microseconds=1)), started_at + duration)],
    )
    return call_id


def show(engine: Engine, wanted: RepricingTerms) -> list[RepricedCalls]:
    with show_repricing(engine, wanted) as snapshot:
        return [each for page, _ in snapshot.pages for each in page]


def shown(engine: Engine, wanted: RepricingTerms) -> dict[int, tuple[int, int, int]]:
    """By org: how many calls, what they are billed, and what they would be."""
    return {
        each.org_id: (each.calls, each.billed_cents, each.repriced_cents) for each in show(engine, wanted)
    }


def apply(
    engine: Engine,
    wanted: RepricingTerms,
    key: str = "k",
    *,
    orgs: int | None = None,
    reason: str = "a mistake",
) -> dict[int, int]:
    """Apply it, to so many orgs and no more if that is said; give what each org was adjusted by."""
    before = adjustments(engine)
    with transaction(engine) as connection:
        repricing = begin_repricing(connection, wanted, key=key, reason=reason, actor=SOMEBODY)
    passes = apply_repricing(engine, repricing, actor=SOMEBODY, follow_every=1)
    adjusted = 0
    for done in passes:
        adjusted += len(done.changes)
        if orgs is not None and adjusted >= orgs:
            passes.close()  # as if it were killed between two orgs
            break
    after = adjustments(engine)
    return {
        org_id: cents - before.get(org_id, 0)
        for org_id, cents in after.items()
        if cents != before.get(org_id)
    }


def adjustments(engine: Engine) -> dict[int, int]:
    """By org: what all re-pricings have adjusted it by."""
    statement = text(
        "SELECT org_id, sum(amount_cents) FROM transactions WHERE kind = 'adjustment' AND source_key LIKE 'reprice:%'"
        " GROUP BY org_id"
    )
    with engine.connect() as connection:
        return {org_id: int(cents) for org_id, cents in connection.execute(statement)}


@pytest.fixture
def engine(database: Database) -> Engine:
    make_orgs(database.engine, 1, 2, 3)
    make_prices(database.engine, BOLT, FINE)
    return database.engine


def test_a_call_is_of_the_time_in_which_it_started(engine: Engine) -> None:
    call(engine, 1, APRIL - timedelta(microseconds=1), 120)
    call(engine, 1, MAY, 120)
    assert shown(engine, terms()) == {}
    call(engine, 1, APRIL, 120)
    call(engine, 1, MAY - timedelta(microseconds=1), 120)  # it ends in May
    assert shown(engine, terms()) == {1: (2, 32, 24)}


def test_other_tiers_and_other_orgs_are_left_alone(engine: Engine) -> None:
    call(engine, 1, APRIL, 60, tier="fine")
    call(engine, 1, APRIL, 60)
    call(engine, 2, APRIL, 600)
    assert shown(engine, terms()) == {1: (1, 8, 6), 2: (1, 80, 60)}
    assert shown(engine, terms(org_id=2)) == {2: (1, 80, 60)}


BY_HAND = [
    # Five calls of 3.5 minutes, charged as 4 minutes each: 20 minutes in all, at 8 cents.
    (terms(80_000), 160),
    (terms(0), 0),
    (terms(1_250), 5),  # each half a cent: rounded up, call by call
    (terms(1_249), 0),
    (terms(60_000, connect_fee_microusd=5_000), 125),
    (terms(60_000, increment=(6, 6)), 105),  # 210 s each
    (terms(60_000, increment=(1, 1), minimum_s=211), 105),  # 21.1 cents each
    (terms(60_000, minimum_s=241), 150),
    (steps("20:0", ":0.08"), 0),
    (steps("18:0", ":0.08"), 16),  # the last call crosses the step
    (steps("16:0", ":0.08"), 32),  # exactly between two calls
    (steps("1:0", "2:0.01", ":0.08"), 1 + 18 * 8),  # two steps in one call
    (steps("18:0", ":0.08", increment=(6, 6)), 0),  # 17.5 minutes in all
    (steps("17:0", ":0.08", increment=(6, 6)), 4),
    (steps("4:0.005", "5:0.005", ":0"), 2 + 1),  # 20 minutes: 2 cents, then half a cent
]  # fmt: skip


def test_terms_by_hand(engine: Engine) -> None:
    for number in range(5):
        call(engine, 1, APRIL + number * MINUTE, 210)
    found = [shown(engine, wanted) for wanted, _ in BY_HAND]
    assert found == [{1: (5, 160, cents)} for _, cents in BY_HAND]


def test_what_is_not_named_is_as_each_call_was_billed(engine: Engine) -> None:
    call(engine, 1, APRIL, 46, tier="fine")  # 48 s of 30/6, and a cent to connect
    call(engine, 1, APRIL, 1, tier="fine")  # 48 s too: at least 45
    (found,) = show(engine, terms(100_000, tier="fine"))
    assert (found.billable_seconds, found.billed_cents, found.repriced_cents) == (96, 56, 18)


def test_use_is_the_months_also_outside_of_the_time_in_the_order_of_posting(engine: Engine) -> None:
    call(engine, 1, APRIL + 10 * MINUTE, 120)  # posted first, later by start
    call(engine, 1, APRIL, 60)
    call(engine, 1, MAY, 600)  # another month
    call(engine, 1, APRIL + 5 * MINUTE, 60)  # comes late, counts in April
    wanted = steps("3:0", ":0.08", from_at=APRIL + 5 * MINUTE, until_at=APRIL + 6 * MINUTE)
    assert shown(engine, wanted) == {1: (1, 8, 8)}
    assert shown(engine, replace(wanted, until_at=APRIL + 11 * MINUTE)) == {1: (2, 24, 8)}
    over_two_months = replace(wanted, from_at=APRIL, until_at=MAY + MINUTE)
    assert shown(engine, over_two_months) == {1: (4, 112, 8 + 7 * 8)}


def test_a_late_call_of_before_the_time_takes_its_place_in_the_order_of_posting(engine: Engine) -> None:
    wanted = steps("1:0", ":0.08", from_at=APRIL + MINUTE)
    call(engine, 1, APRIL + MINUTE, 60)
    assert shown(engine, wanted) == {1: (1, 8, 0)}
    call(engine, 1, APRIL, 60)
    assert shown(engine, wanted) == {1: (1, 8, 0)}
    call(engine, 1, APRIL + MINUTE, 60)
    assert shown(engine, wanted) == {1: (2, 16, 8)}


def test_each_org_is_adjusted_by_its_difference_once(engine: Engine) -> None:
    call(engine, 1, APRIL, 120)
    call(engine, 2, APRIL, 600)
    call(engine, 3, APRIL, 0.5)
    assert apply(engine, terms()) == {1: 4, 2: 20, 3: 2}
    assert apply(engine, terms()) == {}
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT amount_cents, description FROM transactions WHERE kind = 'adjustment' AND org_id = 2"
            )
        ).all()
    assert rows == [(20, "a mistake")]
    assert shown(engine, terms()) == {1: (1, 12, 12), 2: (1, 60, 60), 3: (1, 6, 6)}
    assert run_audit(engine).passed


def test_what_costs_more_is_taken_and_what_costs_the_same_is_not_adjusted(engine: Engine) -> None:
    call(engine, 1, APRIL, 60)
    pay_in(engine, 1, 100)
    call(engine, 2, APRIL, 60)
    call(engine, 2, APRIL, 60)
    assert apply(engine, terms(100_000, org_id=1)) == {1: -2}
    # Two calls of one minute: 8 cents each; with one included and the other at 16, 16 cents as well.
    assert apply(engine, steps("1:0", ":0.16", org_id=2), "k2") == {}
    # But they count as billed so: alone, the second one costs 16.
    with engine.connect() as connection:
        last = connection.scalar(text("SELECT max(ended_at) FROM transactions WHERE org_id = 2"))
    assert last is not None
    assert shown(engine, terms(80_000, org_id=2)) == {2: (2, 16, 16)}


def test_the_same_key_with_anything_else_fails(engine: Engine) -> None:
    call(engine, 1, APRIL, 60)
    apply(engine, terms())
    for other in (
        terms(59_999),
        terms(org_id=1),
        terms(until_at=MAY + MINUTE),
        steps("1:0", ":0.06"),
        terms(minimum_s=0),
    ):
        with pytest.raises(
            RepricingError, match=r"key: 'k' was used before .* of all orgs .* \$0.06 per minute"
        ):
            apply(engine, other)
    with pytest.raises(RepricingError, match="'a mistake'"):
        apply(engine, terms(), reason="another")
    assert adjustments(engine) == {1: 2}


def test_an_unknown_tier_or_org_is_told(engine: Engine) -> None:
    with pytest.raises(RepricingError, match="there is no tier 'gold'"):
        show(engine, terms(tier="gold"))
    with pytest.raises(UnknownOrgError):
        apply(engine, terms(org_id=9))


def test_the_same_key_goes_on_where_it_ended_and_nothing_that_overlaps_begins_before(engine: Engine) -> None:
    for org_id in (1, 2, 3):
        call(engine, org_id, APRIL, 60)
    assert apply(engine, terms(), orgs=2) == {1: 2, 2: 2}
    with pytest.raises(RepricingError, match=r"key 'k' .* has not seen to every org yet"):
        apply(engine, terms(50_000, org_id=3), "k2")
    assert apply(engine, terms(50_000, tier="fine"), "k3") == {}  # these don't overlap
    assert apply(engine, terms(50_000, from_at=MAY, until_at=MAY + MINUTE), "k4") == {}
    call(engine, 1, APRIL, 60)  # org 1's cut-off is over, org 3's is yet to come
    call(engine, 3, APRIL, 60)
    assert apply(engine, terms()) == {3: 4}
    assert apply(engine, terms(), "k5") == {1: 2}
    assert run_audit(engine).passed


def test_later_calls_belong_to_a_new_key_and_overlapping_ones_count_at_the_newest(engine: Engine) -> None:
    call(engine, 1, APRIL, 60)
    assert apply(engine, terms(60_000), "first") == {1: 2}
    call(engine, 1, APRIL + MINUTE, 60)
    assert apply(engine, terms(60_000), "first") == {}
    assert shown(engine, terms(60_000)) == {1: (2, 6 + 8, 12)}
    assert apply(engine, terms(50_000, until_at=APRIL + MINUTE), "second") == {1: 1}
    assert shown(engine, terms(60_000)) == {1: (2, 5 + 8, 12)}
    assert apply(engine, terms(60_000), "third") == {1: 1}
    assert apply(engine, terms(80_000), "back") == {1: -4}
    assert sum(adjustments(engine).values()) == 0


def test_steps_of_an_earlier_repricing_count_as_billed(engine: Engine) -> None:
    for number in range(4):
        call(engine, 1, APRIL + number * MINUTE, 60)
    assert apply(engine, steps("2:0", ":0.08"), "package") == {1: 16}
    # The third alone: it counts as billed in the package, at 8 cents, because two came before it.
    third = {"from_at": APRIL + 2 * MINUTE, "until_at": APRIL + 3 * MINUTE}
    assert shown(engine, terms(10_000, **third)) == {1: (1, 8, 1)}
    assert shown(engine, terms(10_000, until_at=APRIL + MINUTE)) == {1: (1, 0, 1)}


def test_what_operators_adjust_or_refund_does_not_count(engine: Engine) -> None:
    call(engine, 1, APRIL, 120)
    assert apply(engine, terms()) == {1: 4}
    with transaction(engine) as connection:
        adjust(connection, 1, amount_cents=-4, reason="taken back", key="back")
    assert shown(engine, terms()) == {1: (1, 12, 12)}
    with transaction(engine) as connection, pytest.raises(ValueError, match="re-pricing's"):
        adjust(connection, 1, amount_cents=1, reason="x", key="reprice:1:k")


def test_many_at_once_with_the_same_key_adjust_each_org_once(engine: Engine) -> None:
    for org_id in (1, 2, 3):
        call(engine, org_id, APRIL, 60)
    together(*[lambda: apply(engine, terms())] * 3)
    assert adjustments(engine) == {1: 2, 2: 2, 3: 2}
    assert run_audit(engine).passed


def test_all_pages_are_of_one_snapshot(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repricing_passes, "ORGS_AT_ONCE", 1)
    for org_id in (1, 2, 3):
        call(engine, org_id, APRIL, 60)
    with show_repricing(engine, terms()) as snapshot:
        first, progress = next(snapshot.pages)
        assert (progress.done, progress.total) == (1, 3)
        call(engine, 3, APRIL, 600)
        apply(engine, terms(), "meanwhile")
        rest = [each for page, _ in snapshot.pages for each in page]
    assert [(each.org_id, each.billed_cents, each.repriced_cents) for each in (*first, *rest)] == [
        (1, 8, 6),
        (2, 8, 6),
        (3, 8, 6),
    ]


AUDITED = {
    "a difference": "UPDATE repriced_orgs SET repriced_cents = repriced_cents - 1",
    "another adjustment": "UPDATE repriced_orgs SET transaction_id = transaction_id - 1",
    "no adjustment": "UPDATE repriced_orgs SET transaction_id = NULL, repriced_cents = billed_cents",
    "not seen to": "DELETE FROM repriced_orgs",
    "another key": "UPDATE repricings SET key = 'other'",
}


def test_the_audit_names_each_damage(engine: Engine, database: Database) -> None:
    call(engine, 1, APRIL, 60)
    apply(engine, terms())
    call(engine, 2, APRIL, 60)
    assert run_audit(engine).passed
    execute_as(
        database.admin_url,
        "ALTER TABLE repriced_orgs DISABLE TRIGGER USER; CREATE TABLE kept_orgs AS TABLE repriced_orgs",
    )
    for name, script in AUDITED.items():
        execute_as(database.admin_url, script)
        assert {each.invariant for each in run_audit(engine).violations} == {"repricing_adjusted"}, name
        execute_as(
            database.admin_url,
            "DELETE FROM repriced_orgs; INSERT INTO repriced_orgs TABLE kept_orgs; UPDATE repricings SET key = 'k'",
        )
    assert run_audit(engine).passed


def test_calls_that_are_posted_meanwhile_are_covered_or_belong_to_the_next(engine: Engine) -> None:
    stop = threading.Event()
    posted: list[int] = []

    def keep_posting() -> None:
        while not stop.is_set():
            posted.append(call(engine, 1 + len(posted) % 3, APRIL, 60))

    writer = threading.Thread(target=keep_posting)
    writer.start()
    keys = [f"key {number}" for number in range(8)]
    try:
        for key in keys:
            apply(engine, terms(), key)
    finally:
        stop.set()
        writer.join(30)
    apply(engine, terms(), "last")
    assert sum(adjustments(engine).values()) == 2 * len(posted)
    assert all(billed == repriced for _, billed, repriced in shown(engine, terms()).values())
    assert run_audit(engine).passed


@pytest.mark.parametrize(
    ("from_at", "until_at", "first", "last"),
    [
        (APRIL, MAY, APRIL, MAY),
        (MAY - MINUTE, MAY + MINUTE, APRIL, datetime(2026, 6, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC),
            datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime(9999, 12, 5, tzinfo=UTC), datetime.max.replace(tzinfo=UTC), datetime(9999, 12, 1, tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC)),
    ],
)  # fmt: skip
def test_months(from_at: datetime, until_at: datetime, first: datetime, last: datetime) -> None:
    assert whole_months(from_at, until_at) == (first, last)


# Against a model of exact fractions: random calls, orders, terms, orgs, months, and re-pricings over each other.


@dataclass(frozen=True)
class Made:
    org_id: int
    started_at: datetime
    duration_s: int


@dataclass
class Model:
    price: Price
    calls: list[Made] = field(default_factory=list)
    applied: list[tuple[RepricingTerms, int]] = field(default_factory=list)
    """With how many calls had been posted then."""

    def inside(self, made: Made, wanted: RepricingTerms) -> bool:
        return wanted.from_at <= made.started_at < wanted.until_at and wanted.org_id in (None, made.org_id)

    def seconds(self, made: Made, wanted: RepricingTerms | None) -> int:
        first, following = self.price.increment_first_s, self.price.increment_next_s
        minimum = self.price.minimum_s
        if wanted is not None and self.inside(made, wanted):
            first, following = wanted.increment or (first, following)
            minimum = minimum if wanted.minimum_s is None else wanted.minimum_s
        seconds, left = first, max(made.duration_s, minimum) - first
        while left > 0:
            seconds, left = seconds + following, left - following
        return seconds

    def cost(self, at: int, wanted: RepricingTerms | None) -> int:
        made, fee = self.calls[at], self.price.connect_fee_microusd
        if wanted is None:
            wanted = RepricingTerms("", APRIL, MAY, None, self.price.rate_microusd_per_minute)
            seconds = self.seconds(made, None)
        else:
            seconds = self.seconds(made, wanted)
            fee = fee if wanted.connect_fee_microusd is None else wanted.connect_fee_microusd
        before = sum(
            self.seconds(each, wanted)
            for each in self.calls[:at]
            if each.org_id == made.org_id and each.started_at.month == made.started_at.month
        )
        cost = Fraction(fee)
        for second in range(before, before + seconds):
            rates = [
                s.rate_microusd_per_minute for s in wanted.steps if s.until_s is None or second < s.until_s
            ]
            cost += Fraction((rates or [wanted.rate_microusd_per_minute])[0], 60)
        return floor(cost / CENT_MICROUSD + Fraction(1, 2))

    def billed(self, at: int) -> int:
        covering = [
            wanted for wanted, posted in self.applied if at < posted and self.inside(self.calls[at], wanted)
        ]
        return self.cost(at, covering[-1] if covering else None)

    def show(self, wanted: RepricingTerms) -> dict[int, tuple[int, int, int]]:
        found: dict[int, tuple[int, int, int]] = {}
        for at, made in enumerate(self.calls):
            if self.inside(made, wanted):
                calls, billed, repriced = found.get(made.org_id, (0, 0, 0))
                found[made.org_id] = (calls + 1, billed + self.billed(at), repriced + self.cost(at, wanted))
        return found


moments = st.integers(-3, 33).map(lambda day: APRIL + timedelta(days=day, hours=7 * (day % 3)))
rates = st.sampled_from([0, 1_249, 5_000, 50_000, 80_000, 333_333])
made_calls = st.builds(Made, st.integers(1, 2), moments, st.integers(1, 200))
some_steps = st.lists(st.integers(1, 12), max_size=3, unique=True).flatmap(
    lambda ends: st.tuples(*[rates] * (len(ends) + 1)).map(
        lambda each: (
            parse_steps(
                [
                    *(f"{end}:{rate / 10**6:.6f}" for end, rate in zip(sorted(ends), each, strict=False)),
                    f":{each[-1] / 10**6:.6f}",
                ]
            )
            if ends
            else ()
        )
    )
)
increments = st.sampled_from([None, None, (60, 60), (6, 6), (30, 6)])


@st.composite
def some_terms(draw: st.DrawFn) -> RepricingTerms:
    first, last = sorted(draw(st.tuples(moments, moments)))
    chosen = draw(some_steps)
    return RepricingTerms(
        "bolt",
        first,
        last + MINUTE,
        draw(st.sampled_from([None, None, 1, 2])),
        chosen[-1].rate_microusd_per_minute if chosen else draw(rates),
        chosen,
        draw(increments),
        draw(st.sampled_from([None, None, 0, 90])),
        draw(st.sampled_from([None, None, 0, 4_999])),
    )


acts = st.lists(st.one_of(st.lists(made_calls, min_size=1, max_size=6), some_terms()), min_size=2, max_size=9)
prices = st.builds(
    lambda rate, increment, minimum, fee: Price("bolt", None, rate, increment[0], increment[1], minimum, fee),
    rates,
    st.sampled_from([(60, 60), (6, 6)]),
    st.sampled_from([0, 61]),
    st.sampled_from([0, 5_000]),
)
_example = count(1)


@settings(max_examples=30)
@given(prices, acts)
def test_any_sequence_is_what_exact_fractions_make_it(
    database: Database, price: Price, acts: Sequence[list[Made] | RepricingTerms]
) -> None:
    engine, number = database.engine, next(_example)
    tier = f"tier-{number}"
    orgs = {1: number * 10 + 1, 2: number * 10 + 2}
    make_orgs(engine, *orgs.values())
    make_prices(engine, replace(price, tier=tier))
    model = Model(price)
    for at, act in enumerate(acts):
        if isinstance(act, list):
            for made in act:
                call(engine, orgs[made.org_id], made.started_at, made.duration_s, tier=tier)
            model.calls += act
            continue
        wanted = replace(act, tier=tier, org_id=None if act.org_id is None else orgs[act.org_id])
        expected = {orgs[org_id]: figures for org_id, figures in model.show(act).items()}
        assert shown(engine, wanted) == expected
        adjusted = apply(engine, wanted, f"{number}-{at}")
        assert adjusted == {
            org_id: billed - repriced
            for org_id, (_, billed, repriced) in expected.items()
            if billed != repriced
        }
        model.applied.append((act, len(model.calls)))
        assert all(billed == repriced for _, billed, repriced in shown(engine, wanted).values())
