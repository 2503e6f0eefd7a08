"""A price that is set while meters run: every call is priced with what was in force when it started."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

import workers.current_prices
from db.ledger.price_book import refresh_price_book
from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.rules.pricing import PriceBook
from tests.conftest import Database
from tests.database_clock import own_database_clock, set_database_clock
from tests.spine.billing import assert_sound, debits, price
from tests.workers.calls import encode
from tests.workers.processes import Site


def test_a_later_price_reaches_a_meter_whose_book_is_old(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_at = datetime(2027, 1, 15, 12, tzinfo=UTC)
    change_at = set_at + timedelta(seconds=60)
    loads: list[int] = []

    def load_and_count(connection: Connection, known: PriceBook) -> PriceBook:
        book = refresh_price_book(connection, known)
        loads.append(book.version)
        return book

    monkeypatch.setattr(workers.current_prices, "refresh_price_book", load_and_count)

    def call(call_id: int, started_at: datetime, duration_s: int = 60) -> bytes:
        ended_at = started_at + timedelta(seconds=duration_s)
        return encode(call_id=call_id, duration_seconds=duration_s, ended_at=ended_at.isoformat())

    just_before = change_at - timedelta(milliseconds=1)
    # The meter's own time stands still: it has no reason of its own to look at the prices again.
    with (
        own_database_clock(database.admin_url) as admin,
        site.meters("m", monotonic=lambda: 100.0),
    ):
        set_database_clock(admin, set_at)
        site.push_at_once([call(1, set_at - timedelta(hours=1)), call(2, just_before)])
        site.wait_until_drained()
        assert len(loads) == 1
        later = replace(price("bolt", "0.10"), in_force_from=change_at)
        with transaction(site.engine) as connection:
            assert set_price(connection, later, lambda: set_at).changed
        set_database_clock(admin, change_at + timedelta(hours=1))
        site.push_at_once([call(3, just_before), call(4, change_at), call(5, just_before, duration_s=120)])
        site.wait_until_drained()
        assert len(loads) == 2
        site.push_at_once([call(6, change_at)])
        site.wait_until_drained()
        assert len(loads) == 2
    billed = {row.call_id: (row.rate_microusd_per_minute, row.amount_cents) for row in debits(site.engine)}
    assert billed == {
        1: (80_000, -8),
        2: (80_000, -8),
        3: (80_000, -8),
        4: (100_000, -10),
        5: (80_000, -16),
        6: (100_000, -10),
    }
    assert_sound(site.engine)
