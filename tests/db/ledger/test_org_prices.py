"""Prices of single orgs: set, ended, cancelled, replaced; what each call then costs; and what the version before sees of it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import redis
from psycopg import errors
from sqlalchemy import Engine, text

from db.ledger.price_book import load_price_book, refresh_price_book
from db.ledger.prices import PriceError, SetPrice, cancel_price, clear_price, list_prices, set_price
from db.models.errors import UnknownOrgError
from db.postgres.engine import transaction
from metering.rules.pricing import Price, PriceBook, PriceEnd
from tests.conftest import Database
from tests.db import execute_as
from tests.db.ledger.test_stepped_debits import stepped
from tests.spine.billing import assert_sound, debits, event, prepare, price, push, run_meters

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
START = NOW + timedelta(days=1)


@pytest.fixture
def engine(database: Database) -> Engine:
    prepare(database.engine, org_ids=(1, 2), prices=[price("bolt", "0.08"), price("reef", "0.05")])
    return database.engine


def put(
    engine: Engine,
    usd: str,
    start: datetime | None = START,
    *,
    org_id: int | None = 1,
    at: datetime = NOW,
    restored: bool = False,
    allow_unusual: bool = False,
) -> SetPrice:
    new = replace(price("bolt", usd), in_force_from=start, org_id=org_id)
    with transaction(engine) as connection:
        return set_price(connection, new, lambda: at, restored=restored, allow_unusual=allow_unusual)


def end(
    engine: Engine, start: datetime | None, *, at: datetime = NOW, org_id: int = 1, restored: bool = False
) -> SetPrice:
    with transaction(engine) as connection:
        return clear_price(connection, "bolt", org_id, start, lambda: at, restored=restored)


def cancel(
    engine: Engine, start: datetime = START, *, org_id: int | None = 1, at: datetime = NOW
) -> Price | PriceEnd:
    with transaction(engine) as connection:
        return cancel_price(connection, "bolt", org_id, start, lambda: at)


def book_of(engine: Engine) -> PriceBook:
    with transaction(engine) as connection:
        return load_price_book(connection)


def rate_at(engine: Engine, at: datetime, org_id: int | None = 1) -> int:
    found = book_of(engine).in_force("bolt", org_id, at)
    assert found is not None
    return found.rate_microusd_per_minute


def test_an_org_has_its_price_from_the_time_on_and_until_its_end(engine: Engine) -> None:
    ends = START + timedelta(days=2)
    assert put(engine, "0.07").changed
    assert end(engine, ends).changed
    instant = timedelta(microseconds=1)
    rates = [rate_at(engine, at) for at in (START - instant, START, ends - instant, ends)]
    assert rates == [80_000, 70_000, 70_000, 80_000]
    assert rate_at(engine, START, org_id=2) == rate_at(engine, START, org_id=None) == 80_000
    put(engine, "0.09", START + timedelta(days=1), org_id=None)  # the tier's changes meanwhile
    rates = [rate_at(engine, at) for at in (ends - instant, ends)]
    assert rates == [70_000, 90_000]


def test_setting_again_changes_nothing(engine: Engine) -> None:
    version = book_of(engine).version
    assert put(engine, "0.07").changed
    assert not put(engine, "0.07").changed
    assert not put(engine, "0.07", None, at=START).changed
    assert put(
        engine, "0.08", None, at=START
    ).changed  # the tier's own costs the same: but it may change, and this doesn't
    assert end(engine, START + timedelta(days=1)).changed
    assert not end(engine, START + timedelta(days=1)).changed
    assert not end(engine, None, at=START + timedelta(days=3)).changed
    assert book_of(engine).version > version


@pytest.mark.parametrize(
    ("seconds_ahead", "possible"), [(60, True), (59.999, False), (61, True), (59, False), (-5, False)]
)
@pytest.mark.parametrize("what", ["set", "clear", "cancel", "cancel the end", "cancel the tier's", "replace"])
def test_until_when_it_can_be_done(engine: Engine, what: str, seconds_ahead: float, possible: bool) -> None:
    """A price, its end, its cancelling and its replacing: all 60 s before, the moment included."""
    at = START - timedelta(seconds=seconds_ahead)
    if what != "set":
        put(engine, "0.07", START - timedelta(hours=1) if what in ("clear", "cancel the end") else START)
    if what == "cancel the end":
        end(engine, START)
    if what == "cancel the tier's":
        put(engine, "0.07", org_id=None)
    before = book_of(engine)
    acts: dict[str, Callable[[], object]] = {
        "set": lambda: put(engine, "0.07", at=at),
        "clear": lambda: end(engine, START, at=at),
        "cancel": lambda: cancel(engine, at=at),
        "cancel the end": lambda: cancel(engine, at=at),
        "cancel the tier's": lambda: cancel(engine, org_id=None, at=at),
        "replace": lambda: put(engine, "0.06", at=at),
    }
    if possible:
        acts[what]()
        assert book_of(engine).version > before.version
    else:
        with pytest.raises(PriceError, match=r"^from: .* 60 s (ahead|before)"):
            acts[what]()
        assert book_of(engine).version == before.version


def test_what_is_cancelled_never_was_and_its_time_is_free_again(engine: Engine) -> None:
    put(engine, "0.07")
    assert cancel(engine) == replace(price("bolt", "0.07"), in_force_from=START, org_id=1)
    assert rate_at(engine, START) == 80_000
    with pytest.raises(PriceError, match="nothing was set for org 1's tier bolt from 2026-05-02"):
        cancel(engine)
    assert put(engine, "0.06").changed
    assert rate_at(engine, START) == 60_000
    with pytest.raises(PriceError, match="nothing was set for tier bolt from"):
        cancel(engine, org_id=None)


def test_what_is_set_for_the_same_time_is_replaced(engine: Engine) -> None:
    put(engine, "0.07")
    done = put(engine, "0.06")
    assert done.replaced == replace(price("bolt", "0.07"), in_force_from=START, org_id=1)
    assert rate_at(engine, START) == 60_000
    put(engine, "0.05", START - timedelta(hours=1))
    assert end(engine, START).replaced == done.price
    assert rate_at(engine, START) == 80_000
    assert isinstance(put(engine, "0.06").replaced, PriceEnd)
    assert put(engine, "0.09", org_id=None).changed
    assert put(engine, "0.10", org_id=None).replaced is not None
    assert rate_at(engine, START, org_id=2) == 100_000


@pytest.mark.parametrize(
    ("usd", "usual"),
    [("0.8", True), ("0.800001", False), ("0.008", True), ("0.007999", False), ("0", False), ("8", False)],
)
@pytest.mark.parametrize("org_id", [1, None])
def test_ten_times_the_price_before_or_a_tenth_of_it(
    engine: Engine, usd: str, usual: bool, org_id: int | None
) -> None:
    if not usual:
        with pytest.raises(PriceError, match=r"^USD_PER_MINUTE: \$.* the \$0\.08 before it\. Say --yes"):
            put(engine, usd, org_id=org_id)
    assert put(engine, usd, org_id=org_id, allow_unusual=not usual).changed


@pytest.mark.parametrize(
    ("before", "steps", "named"),
    [
        (":0.08", "500:0 2000:0.06 :0.05", None),
        (":0.08", "500:0 2000:0.6 :0.05", None),  # not more than ten times
        (":0.08", "500:0 2000:0.81 :0.05", "0.81"),
        (":0.08", "500:0 2000:0.006 :0.05", "0.006"),
        (":0.08", "500:0 2000:0.06 :0.0005", "0.0005"),
        (":0.08", "500:0.05 :0", "0.00"),
        ("500:0 :0.05", "600:0 :0.04", None),
        ("500:0 :0.05", ":0.08", None),
        ("500:0.08 :0.005", "500:0.07 :0.004", None),
    ],
)
def test_a_slip_in_any_step_wants_a_yes(engine: Engine, before: str, steps: str, named: str | None) -> None:
    """The dearest is not the only one that may lack or have a digit too many; included minutes are no slip."""
    old, new = (stepped(*each.split(), start=START, org_id=1) for each in (before, steps))
    with transaction(engine) as connection:
        set_price(connection, old, lambda: NOW)
    new = replace(new, in_force_from=START + timedelta(days=1))
    with transaction(engine) as connection:
        if named is None:
            assert set_price(connection, new, lambda: NOW, allow_unusual=False).changed
        else:
            with pytest.raises(PriceError, match=rf"^USD_PER_MINUTE: \${named} is .* Say --yes"):
                set_price(connection, new, lambda: NOW, allow_unusual=False)


def test_a_price_is_compared_with_the_one_that_it_follows(engine: Engine) -> None:
    put(engine, "0.5")
    put(engine, "3", START + timedelta(days=1))
    with pytest.raises(PriceError, match=r"\$0\.04 is less than a tenth of the \$0\.50"):
        put(engine, "0.04", START + timedelta(hours=1))
    end(engine, START + timedelta(days=2))
    assert put(engine, "0.04", START + timedelta(days=3)).changed  # beside the tier's 0.08


def test_orgs_and_tiers_that_are_not_there(engine: Engine) -> None:
    with pytest.raises(UnknownOrgError):
        put(engine, "0.07", org_id=3)
    with pytest.raises(UnknownOrgError):
        end(engine, START, org_id=3)
    with pytest.raises(PriceError, match="no price of its own for tier bolt by then"):
        end(engine, START)
    put(engine, "0.07", START + timedelta(days=1))
    with pytest.raises(PriceError, match="no price of its own for tier bolt by then"):
        end(engine, START)
    unknown = replace(price("storm", "0.07"), in_force_from=START, org_id=1)
    with transaction(engine) as connection, pytest.raises(PriceError, match="there is no tier storm"):
        set_price(connection, unknown, lambda: NOW)


def test_a_first_price_stays(database: Database, engine: Engine) -> None:
    with pytest.raises(errors.IntegrityConstraintViolation, match="append-only: UPDATE is refused"):
        execute_as(database.url, "UPDATE prices SET cancelled_at = metering_now()")


def call(call_id: int, started_at: datetime, duration_s: int = 60, **fields: object) -> dict[str, object]:
    ended_at = started_at + timedelta(seconds=duration_s)
    return event(call_id=call_id, duration_seconds=duration_s, ended_at=ended_at.isoformat(), **fields)


def test_a_call_costs_what_its_org_had_when_it_started(engine: Engine, redis_client: redis.Redis) -> None:
    """Begins and ends of the org's price between a call's start and its end, and other orgs' calls beside it."""
    begins, ends = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 4, 10, tzinfo=UTC)
    put(engine, "0.07", begins, at=begins - timedelta(days=1))
    end(engine, ends, at=begins)
    millisecond = timedelta(milliseconds=1)
    push(
        redis_client,
        [
            call(1, begins - millisecond, 3_600),
            call(2, begins),
            call(3, ends - millisecond, 604_800),
            call(4, ends),
            call(5, begins, org_id=2),
            call(6, begins, tier="reef"),
        ],
    )
    run_meters(engine, redis_client)
    billed = {row.call_id: row.amount_cents for row in debits(engine)}
    assert billed == {1: -8 * 60, 2: -7, 3: -7 * 10_080, 4: -8, 5: -8, 6: -5}
    assert_sound(engine)


def test_after_a_restore_an_orgs_price_and_its_end_are_set_again(
    engine: Engine, redis_client: redis.Redis
) -> None:
    begins, ends = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 4, 10, tzinfo=UTC)
    push(redis_client, [call(1, begins, org_id=2), call(2, ends + timedelta(days=5))])
    run_meters(engine, redis_client)
    with pytest.raises(PriceError, match=r"call 2 of org 1 .* is billed already"):
        put(engine, "0.07", begins, restored=True)
    assert put(engine, "0.08", ends, restored=True, at=ends - timedelta(days=1)).changed
    assert put(engine, "0.07", begins, restored=True).changed  # until then nothing of the org's is billed
    assert end(engine, begins + timedelta(days=2), restored=True).changed
    push(redis_client, [call(3, begins), call(4, begins + timedelta(days=2))])
    run_meters(engine, redis_client)
    assert {row.call_id: row.amount_cents for row in debits(engine)} == {1: -8, 2: -8, 3: -7, 4: -8}
    assert_sound(engine)


def test_a_book_is_brought_up_to_date_by_what_changed(engine: Engine) -> None:
    book = book_of(engine)
    for act in (
        lambda: put(engine, "0.07"),
        lambda: put(engine, "0.06", org_id=2),
        lambda: cancel(engine),
        lambda: put(engine, "0.09", org_id=None),
        lambda: (end(engine, START + timedelta(days=1), org_id=2), put(engine, "0.05")),
        lambda: cancel(engine, org_id=None),
        lambda: (cancel(engine), cancel(engine, org_id=2)),
        lambda: None,
    ):
        act()
        with transaction(engine) as connection:
            refreshed = refresh_price_book(connection, book)
            loaded = load_price_book(connection)
        assert (refreshed._tiers, refreshed._orgs, refreshed.version) == (
            loaded._tiers,
            loaded._orgs,
            loaded.version,
        )
        book = refreshed
    with transaction(engine) as connection:
        assert refresh_price_book(connection, book) is book


@pytest.mark.long
def test_a_book_is_brought_up_to_date_however_much_has_changed(engine: Engine) -> None:
    """A statement takes 65,535 parameters at most: a book that is seldom read must not fail for ever after so many changes."""
    book = book_of(engine)
    with transaction(engine) as connection:
        connection.execute(
            text("""
                INSERT INTO prices (tier, org_id, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s,
                    minimum_s, connect_fee_microusd, created_at)
                SELECT 'bolt', org_id, :start, 70000, 60, 60, 0, 0, now() FROM generate_series(1, 33000) AS org_id
            """),
            {"start": START},
        )
    with transaction(engine) as connection:
        refreshed = refresh_price_book(connection, book)
    assert refreshed.version > book.version
    assert len(refreshed._orgs["bolt"]) == 33_000


def test_a_book_of_what_a_restored_database_has_forgotten_is_read_anew(
    engine: Engine, database: Database
) -> None:
    """Whether the restored one's version is lower, or higher because prices were set since."""
    put(engine, "0.07")
    known = book_of(engine)
    execute_as(
        database.admin_url,
        "SET session_replication_role = replica; DELETE FROM prices WHERE org_id = 1; RESET session_replication_role;"
        " UPDATE price_book SET version = (SELECT max(version) FROM prices)",
    )
    with transaction(engine) as connection:
        assert refresh_price_book(connection, known).in_force("bolt", 1, START) == price("bolt", "0.08")
    put(engine, "0.06", org_id=2)
    with transaction(engine) as connection:
        book = refresh_price_book(connection, known)
    assert book.version > known.version
    assert book.in_force("bolt", 1, START) == price("bolt", "0.08")


OLD_READ = "SELECT id, tier, in_force_from, rate_microusd_per_minute FROM tier_prices"
OLD_WRITE = """
    INSERT INTO tier_prices (tier, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s,
        connect_fee_microusd, created_at)
    VALUES ('bolt', %s, 90000, 60, 60, 0, 0, now()) RETURNING id
"""


@pytest.mark.parametrize(
    "change",
    [lambda e: put(e, "0.07"), lambda e: cancel(e, org_id=None)],
    ids=["an org's price", "a cancelling"],
)
def test_the_version_before_is_refused_once_there_is_what_it_does_not_know(
    engine: Engine, database: Database, change: Callable[[Engine], object]
) -> None:
    """Until then it reads and sets prices as ever, and this version's meters see what it sets."""
    version = book_of(engine).version
    with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as old:
        assert len(old.execute(OLD_READ).fetchall()) == 2
        old.execute(OLD_WRITE, [START])
        assert old.execute("SELECT max(id) FROM tier_prices").fetchone() == (3,)
        assert rate_at(engine, START) == 90_000
        assert book_of(engine).version > version
        change(engine)
        for statement in (OLD_READ, "SELECT coalesce(max(id), 0) FROM tier_prices"):
            with pytest.raises(errors.ObjectNotInPrerequisiteState, match="stop it, and start the new one"):
                old.execute(statement)


def test_prices_are_listed_by_whose_they_are(engine: Engine) -> None:
    put(engine, "0.07")
    end(engine, START + timedelta(days=1))
    with transaction(engine) as connection:
        assert [each.tier for each in list_prices(connection)] == ["bolt", "reef"]
        assert list_prices(connection, org_id=1) == [
            replace(price("bolt", "0.07"), in_force_from=START, org_id=1),
            PriceEnd("bolt", 1, START + timedelta(days=1)),
        ]
        assert list_prices(connection, org_id=2) == []
        assert connection.scalar(text("SELECT count(*) FROM prices")) == 4
