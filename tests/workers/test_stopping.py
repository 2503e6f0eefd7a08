"""A meter that is told to stop finishes what it has in hand, and leaves nothing behind."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, text

import workers.batch_poster
import workers.current_prices
from db.ledger.post_calls import Posted, StalePriceBookError, post_calls
from db.ledger.price_book import refresh_price_book
from metering.rules.pricing import PriceBook
from tests.workers.calls import ORG_IDS, assert_billed, make_calls
from tests.workers.processes import LIMIT_S, PROCESS_BATCH_LIMIT, Site, wait_until, waits_for_lock
from workers.stream import CallStream


def test_sigterm_with_batches_in_hand(site: Site) -> None:
    """It finishes the one that it bills and the one that it has read ahead, and leaves the rest to others."""
    events = make_calls(2 * PROCESS_BATCH_LIMIT + 500, seed=21)
    meter = site.start("m")
    wait_until(lambda: meter.said("meter is ready"), "getting ready")
    with site.engine.begin() as connection:
        lock = text("SELECT FROM accounts WHERE org_id = :org_id FOR NO KEY UPDATE")
        connection.execute(lock, {"org_id": ORG_IDS[-1]})
        site.push_at_once(events)
        wait_until(lambda: waits_for_lock(site.engine), "waiting for the org")
        wait_until(lambda: site.in_hand().get("m", 0) > PROCESS_BATCH_LIMIT, "reading ahead")
        meter.send(signal.SIGTERM)
    assert meter.wait() == 0
    in_hand, ahead = (batch["events"] for batch in meter.said("batch"))
    assert max(in_hand, ahead) <= PROCESS_BATCH_LIMIT < in_hand + ahead
    assert site.deliveries() == {}
    assert site.consumers() == set()
    assert not site.drained()

    site.drain("m")
    assert site.consumers() == set()
    assert_billed(site.engine, site.client, events)


def test_told_to_stop_while_prices_change(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that only has to be priced anew is finished all the same."""
    stop = threading.Event()
    events = make_calls(50, seed=22)

    def post_with_an_old_book(*arguments: Any, **options: Any) -> Posted:
        if stop.is_set():
            return post_calls(*arguments, **options)
        stop.set()
        raise StalePriceBookError

    monkeypatch.setattr(workers.batch_poster, "post_calls", post_with_an_old_book)
    site.push_at_once(events)
    site.run_meter("m", stop)
    assert_billed(site.engine, site.client, events)
    assert site.consumers() == set()


def test_what_a_meter_fails_with_is_told_while_redis_is_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a batch waits to be acked: it is found again."""
    failing = threading.Event()

    def ack(*_: Any) -> None:
        failing.set()
        raise redis.ConnectionError("away")

    def load(connection: Connection, known: PriceBook) -> PriceBook:
        if failing.is_set():
            raise ValueError("no price book at all")
        return refresh_price_book(connection, known)

    monkeypatch.setattr(CallStream, "ack", ack)
    monkeypatch.setattr(workers.current_prices, "refresh_price_book", load)
    monkeypatch.setattr(workers.current_prices, "PRICES_EVERY_S", 0.0)
    events = make_calls(5, seed=23)
    site.push_at_once(events)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(site.run_meter, "m", stop := threading.Event())
        try:
            with pytest.raises(ValueError, match="no price book"):
                running.result(timeout=LIMIT_S)
        finally:
            stop.set()
    monkeypatch.undo()
    site.drain("m")
    assert_billed(site.engine, site.client, events)
