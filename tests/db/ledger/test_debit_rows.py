"""A packed row is what Postgres takes for the values that went into it, whatever they are."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.ledger import post_calls
from db.ledger.debit_rows import COLUMNS, END, START, pack_debit, pack_posting
from db.ledger.statements import COPY_DEBITS
from db.postgres.engine import driver_connection
from db.postgres.instants import microseconds
from metering.rules.events import CallEvent
from metering.rules.pricing import Charge, Price
from tests.conftest import Database
from tests.db.audit.ledger import BOLT, a_call, make_orgs, make_prices, post

INT8 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
TIME = st.datetimes(timezones=st.just(UTC))
METADATA = st.sampled_from(["{}", '{"a": 1}', '{"text":"\u00d7 \U0001f600"}'])
EVENT = st.builds(CallEvent, INT8, INT8, TEXT, TEXT, INT8, TIME, st.none() | INT8, st.none() | TEXT, METADATA)
CHARGE = st.builds(Charge, INT8, st.integers(-(2**63) + 1, 2**63 - 1), TEXT)
PRICE = st.builds(
    Price,
    st.just("bolt"),
    st.none(),
    st.integers(0, 10**9),
    st.integers(1, 86_400),
    st.integers(1, 86_400),
    st.integers(0, 604_800),
    st.integers(0, 10**9),
)


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    """With a table like the ledger's, without its rules: the values here are any."""
    with database.engine.connect() as connection:
        driver = driver_connection(connection)
        driver.execute("CREATE TEMPORARY TABLE copied AS SELECT * FROM transactions WITH NO DATA")
        yield driver
        connection.rollback()


def test_a_row_is_what_went_into_it(connection: psycopg.Connection) -> None:
    @given(TEXT, EVENT, PRICE, CHARGE, INT8, TIME)
    def check(
        stream_id: str, event: CallEvent, price: Price, charge: Charge, balance_cents: int, at: datetime
    ) -> None:
        connection.execute("TRUNCATE copied")
        row = pack_posting(balance_cents, microseconds(at)) + pack_debit(stream_id, event, price, charge)
        with connection.cursor().copy(COPY_DEBITS.replace("transactions", "copied").encode()) as copy:
            copy.write(START + row + row + END)
        columns = ", ".join("metadata::text" if name == "metadata" else name for name in COLUMNS)
        rows = connection.execute(f"SELECT {columns} FROM copied".encode(), binary=True).fetchall()  # noqa: S608 - our own words
        expected = {
            "balance_after_cents": balance_cents,
            "created_at": at,
            "org_id": event.org_id,
            "kind": "debit",
            "amount_cents": -charge.amount_cents,
            "call_id": event.call_id,
            "duration_us": event.duration_us,
            "ended_at": event.ended_at,
            "billable_seconds": charge.billable_seconds,
            "rate_microusd_per_minute": price.rate_microusd_per_minute,
            "increment_first_s": price.increment_first_s,
            "increment_next_s": price.increment_next_s,
            "minimum_s": price.minimum_s,
            "connect_fee_microusd": price.connect_fee_microusd,
            "description": charge.description,
            "stream_id": stream_id,
            "tier": event.tier,
            "direction": event.direction,
            "phone_number_id": event.phone_number_id,
            "phone_number_value": event.phone_number_value,
            "metadata": None if event.metadata == "{}" else event.metadata,
        }
        assert [dict(zip(COLUMNS, row, strict=True)) for row in rows] == [expected, expected]

    check()


@pytest.mark.parametrize("off_us", [-1, 0, 1])
def test_microseconds_are_exact_far_from_the_epoch(off_us: int) -> None:
    at = datetime(9999, 12, 31, 23, 59, 59, 999_998, tzinfo=UTC) + timedelta(microseconds=off_us)
    assert timedelta(microseconds=microseconds(at)) == at - datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_debits_are_written_whole_however_they_are_parted(
    database: Database, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(post_calls, "ROWS_AT_ONCE", 2)
    make_orgs(database.engine, 1)
    make_prices(database.engine, BOLT)
    post(database.engine, [a_call(1, call_id, "bolt", 60_000_000) for call_id in range(1, count + 1)])
    with database.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT call_id, balance_after_cents FROM transactions ORDER BY id")
        ).fetchall()
        balance_cents = connection.scalar(text("SELECT balance_cents FROM accounts"))
    assert [tuple(row) for row in rows] == [(number, -8 * number) for number in range(1, count + 1)]
    assert balance_cents == -8 * count
