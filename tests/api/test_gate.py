"""The gate: open or closed by the balance, with or without Redis, for an org and for telephony."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest

from db.ledger.prices import LEAD_TIME, set_price
from db.postgres.engine import transaction
from metering.api import gates, prices
from metering.api.app import make_app
from metering.rules.events import CallEvent
from metering.rules.pricing import PriceBook
from metering.rules.steps import parse_steps
from metering.signals import gate_reader
from tests.api.site import TELEPHONY_TOKEN, Site, api_context, assert_problem, served
from tests.conftest import Database
from tests.db.ledger.test_stepped_debits import bill
from tests.spine.billing import prepare, price
from tests.waiting import wait_until

TELEPHONY = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}


def allowed(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert list(body) == ["allowed", "balance_cents", "max_duration_seconds"]
    assert body["allowed"] is True
    return body


def assert_exhausted(response: httpx.Response) -> None:
    body = assert_problem(response, 402, "balance_exhausted")
    assert list(body) == ["detail", "code", "allowed"]
    assert body["allowed"] is False


@pytest.mark.parametrize("headers", [None, TELEPHONY], ids=["org", "telephony"])
def test_it_follows_the_balance(site: Site, headers: dict[str, str] | None) -> None:
    def ask(query: str = "") -> httpx.Response:
        return site.http.get(f"/v1/gate/1{query}", headers=headers or site.headers(1))

    assert_exhausted(ask())
    site.world.adjust(1)
    assert allowed(ask()) == {"allowed": True, "balance_cents": 1, "max_duration_seconds": None}
    assert allowed(ask("?direction=inbound")) == allowed(ask("?direction=outbound")) == allowed(ask())
    site.world.adjust(-1)
    assert_exhausted(ask("?direction=inbound"))
    site.world.adjust(-1)
    assert_exhausted(ask("?direction=outbound"))


def test_an_exhausted_org_is_open_right_after_its_top_up(site: Site) -> None:
    site.world.save_card()
    site.world.adjust(-100)
    assert_exhausted(site.get("/v1/gate/1"))
    assert site.top_up(500).status_code == 201
    assert allowed(site.get("/v1/gate/1"))["balance_cents"] == 400


@pytest.mark.parametrize("by_postgres", [False, True])
def test_a_suspended_org_is_refused_whatever_its_balance(site: Site, *, by_postgres: bool) -> None:
    site.world.adjust(500)
    site.world.suspend_org()
    for asked in ("/v1/gate/1", "/v1/gate/1?direction=inbound"):
        if by_postgres:
            site.world.client.flushall()
        for headers in (site.headers(1), TELEPHONY):
            body = assert_problem(site.http.get(asked, headers=headers), 403, "org_suspended")
            assert list(body) == ["detail", "code", "allowed"]
            assert body["allowed"] is False
    # Reading and topping up go on.
    assert site.get("/v1/billing").json()["balance_cents"] == 500
    site.world.save_card()
    assert site.top_up(500).status_code == 201
    assert_problem(site.get("/v1/gate/1"), 403, "org_suspended")
    site.world.resume_org()
    assert allowed(site.get("/v1/gate/1"))["balance_cents"] == 1_000


@pytest.mark.parametrize(
    ("balance_cents", "terms", "seconds"),
    [
        (16, {}, 120),
        (15, {}, 60),
        (1, {}, 60),  # at least one first increment
        (1, {"increment_first_s": 30, "increment_next_s": 6}, 30),
        (10**12, {}, 604_800),
    ],
)
def test_the_longest_call_that_the_balance_covers(
    site: Site, balance_cents: int, terms: dict[str, int], seconds: int
) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08", **terms)])
    site.world.adjust(balance_cents)
    body = allowed(site.get("/v1/gate/1?direction=outbound&tier=bolt"))
    assert (type(body["max_duration_seconds"]), body["max_duration_seconds"]) == (int, seconds)
    assert allowed(site.get("/v1/gate/1"))["max_duration_seconds"] is None


def test_prices_are_those_in_force_now(site: Site) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    site.world.adjust(16)
    assert allowed(site.get("/v1/gate/1?tier=bolt"))["max_duration_seconds"] == 120
    with transaction(site.world.engine) as connection:
        set_price(connection, price("bolt", "0.04"), site.world.clock)  # 60 s ahead
    site.world.clock.move(seconds=59)
    assert allowed(site.get("/v1/gate/1?tier=bolt"))["max_duration_seconds"] == 120
    site.world.clock.move(seconds=1)
    assert allowed(site.get("/v1/gate/1?tier=bolt"))["max_duration_seconds"] == 240


def test_by_steps_it_counts_what_was_used_this_month(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five minutes included, then 8 cents; 16 cents are there. While Postgres is away the dearest step counts."""
    steps = parse_steps(["5:0", ":0.08"])
    prepare(site.world.engine, org_ids=[2], prices=[replace(price("bolt", "0.08"), steps=steps)])
    own = replace(price("bolt", "0.04"), org_id=2, in_force_from=site.world.clock() + timedelta(seconds=60))
    with transaction(site.world.engine) as connection:
        set_price(connection, own, site.world.clock)
    for org_id in (1, 2):
        site.world.adjust(16, org_id=org_id)

    def longest(org_id: int = 1) -> int:
        asked = site.http.get(f"/v1/gate/{org_id}?tier=bolt", headers=TELEPHONY)
        seconds = allowed(asked)["max_duration_seconds"]
        assert isinstance(seconds, int)
        return seconds

    assert longest() == longest(2) == 7 * 60
    used = CallEvent(1, 1, "bolt", "outbound", 240_000_000, site.world.clock(), None, None, "{}")
    assert len(bill(site.world.engine, [used]).debits) == 1
    assert longest() == 3 * 60
    site.world.clock.move(seconds=60)
    assert longest(2) == 4 * 60  # its own price

    def away(*_: object) -> int:
        raise psycopg.OperationalError("away")

    monkeypatch.setattr(gates, "read_usage_now", away)
    assert longest() == 2 * 60


def test_a_new_tier_is_known_at_once(site: Site) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    site.world.adjust(16)
    assert_problem(site.get("/v1/gate/1?tier=spark"), 400, "invalid_request", "tier")
    prepare(site.world.engine, org_ids=[], prices=[price("spark", "0.01")])
    assert allowed(site.get("/v1/gate/1?tier=spark"))["max_duration_seconds"] == 960


def test_while_postgres_is_away_prices_that_were_read_are_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    site.world.adjust(16)
    assert allowed(site.http.get("/v1/gate/1?tier=bolt", headers=TELEPHONY))["max_duration_seconds"] == 120

    def away(*_: object) -> PriceBook:
        raise psycopg.OperationalError("away")

    monkeypatch.setattr(prices, "refresh_price_book", away)
    for seconds in (0, 59, 86_400):
        site.world.clock.move(seconds=seconds)
        asked = site.http.get("/v1/gate/1?tier=bolt", headers=TELEPHONY)
        assert allowed(asked)["max_duration_seconds"] == 120
    # That it isn't there can't be said now.
    assert_problem(site.http.get("/v1/gate/1?tier=spark", headers=TELEPHONY), 503, "unavailable")


def test_prices_are_read_again_without_anybody_asking(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "READ_EVERY_S", 0.02)
    database = Database("", database_url(site), "", site.world.engine)
    with api_context(database, "redis://127.0.0.1:1/0", site.world) as context, served(make_app(context)):
        wait_until(lambda: context.prices.held("bolt", 1, site.world.clock()) is None, limit_s=30)
        prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
        wait_until(lambda: context.prices.held("bolt", 1, site.world.clock()), limit_s=30)
        assert (
            context.prices.held("bolt", 1, site.world.clock() + LEAD_TIME) is None
        )  # another may be in force by then


def test_an_unknown_tier_is_named_also_while_the_gate_is_closed(site: Site) -> None:
    assert_problem(site.get("/v1/gate/1?tier=bolt"), 400, "invalid_request", "tier")


@pytest.mark.parametrize(
    "damage",
    [
        ("DEL", "gate:1"),
        ("SET", "gate:1", "open"),
        ("HSET", "gate:1", "state", "ajar"),
        ("HSET", "gate:1", "balance_cents", "many"),
        ("HSET", "gate:1", "version", "new"),
        ("HDEL", "gate:1", "state"),
    ],
    ids=" ".join,
)
def test_a_gate_that_is_missing_or_spoilt_is_answered_by_postgres(
    site: Site, damage: tuple[str, ...]
) -> None:
    site.world.adjust(42)
    site.world.client.execute_command(*damage)  # type: ignore[no-untyped-call]
    assert allowed(site.get("/v1/gate/1"))["balance_cents"] == 42
    site.world.adjust(-42)
    site.world.client.execute_command(*damage)  # type: ignore[no-untyped-call]
    assert_exhausted(site.get("/v1/gate/1"))


def test_it_answers_from_redis_where_that_has_the_gate(site: Site) -> None:
    site.world.adjust(42)
    site.world.client.hset("gate:1", "balance_cents", "41")
    assert allowed(site.get("/v1/gate/1"))["balance_cents"] == 41


@contextmanager
def silent_server() -> Iterator[str]:
    """A Redis that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()
        taken: list[socket.socket] = []

        def take() -> None:
            listening.settimeout(0.05)
            while not stop.is_set():
                try:
                    taken.append(listening.accept()[0])
                except TimeoutError:
                    continue

        taker = threading.Thread(target=take)
        taker.start()
        try:
            yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        finally:
            stop.set()
            taker.join()
            for each in taken:
                each.close()


@contextmanager
def served_with_redis_at(site: Site, database_url: str, url: str) -> Iterator[httpx.Client]:
    database = Database("", database_url, "", site.world.engine)
    with (
        api_context(database, url, site.world) as context,
        served(make_app(context)) as address,
        httpx.Client(base_url=address, headers=site.headers(1), timeout=10) as http,
    ):
        yield http


def database_url(site: Site) -> str:
    return site.context.engine.url.render_as_string(hide_password=False)


def test_while_redis_is_down_postgres_answers(site: Site) -> None:
    site.world.adjust(42)
    with served_with_redis_at(site, database_url(site), "redis://127.0.0.1:1/0") as http:
        for _ in range(2):
            assert allowed(http.get("/v1/gate/1"))["balance_cents"] == 42
        assert http.get("/v1/healthz").json() == {"ok": True}
        assert assert_problem(http.get("/readyz"), 503, "not_ready")["away"] == ["redis"]


def test_while_redis_is_silent_nobody_waits_long_for_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.world.adjust(42)
    with silent_server() as url, served_with_redis_at(site, database_url(site), url) as http:
        assert allowed(http.get("/v1/gate/1"))["balance_cents"] == 42
        monkeypatch.setattr(gate_reader, "PAUSE_S", 60.0)
        took_s = []
        for _ in range(5):  # it isn't asked again at once
            response = http.get("/v1/gate/1")
            assert allowed(response)["balance_cents"] == 42
            took_s.append(response.elapsed.total_seconds())
        assert min(took_s) < 0.45


def test_telephony_asks_for_every_org_and_hears_of_one_that_is_not_there(site: Site) -> None:
    site.world.make_org(2, balance_cents=7)
    assert allowed(site.http.get("/v1/gate/2", headers=TELEPHONY))["balance_cents"] == 7
    assert_exhausted(site.http.get("/v1/gate/1", headers=TELEPHONY))
    assert_problem(site.http.get("/v1/gate/3", headers=TELEPHONY), 404, "not_found")


@pytest.mark.parametrize("token", ["telephony-toke", "telephony-token2", "Telephony-Token", "null", "None"])
def test_another_token_opens_nothing(site: Site, token: str) -> None:
    site.world.adjust(1)
    response = site.http.get("/v1/gate/1", headers={"Authorization": f"Bearer {token}"})
    assert_problem(response, 401, "unauthenticated")


def test_an_unset_token_opens_nothing(site: Site, redis_url: str) -> None:
    site.world.adjust(1)
    database = Database("", database_url(site), "", site.world.engine)
    with (
        api_context(database, redis_url, site.world, token=None) as context,
        served(make_app(context)) as url,
    ):
        for token in (TELEPHONY_TOKEN, "None", "null"):
            response = httpx.get(f"{url}/v1/gate/1", headers={"Authorization": f"Bearer {token}"})
            assert_problem(response, 401, "unauthenticated")
        assert httpx.get(f"{url}/v1/gate/1", headers=site.headers(1)).status_code == 200
