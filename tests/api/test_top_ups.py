"""Top-ups over HTTP: charged once whatever the client does, and in nobody else's way."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from db.attempts.attempts import Attempt
from metering.api import server, thread_pools
from metering.api.app import make_app
from metering.api.thread_pools import PROVIDER_THREADS, PROVIDER_THREADS_PER_ORG
from metering.payments.stripe_api import StripeApi
from metering.rules.payments import Intent
from metering.sandbox.stripe.faults import RequestFault
from tests.api.site import TELEPHONY_TOKEN, Site, api_context, assert_problem, served
from tests.conftest import Database
from tests.waiting import wait_until

CREATE = "payment_intents.create"


def charges(site: Site) -> int:
    return site.world.sandbox.totals().charges


def together(number: int, ask: Callable[[], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(number) as threads:
        return [each.result() for each in [threads.submit(ask) for _ in range(number)]]


def test_fifty_at_once_with_one_key_are_one_charge_and_fifty_equal_answers(site: Site) -> None:
    site.world.save_card()
    site.world.sandbox.set_latency(0.1)
    answers = together(50, partial(site.top_up, 5_000, key="once"))
    assert {(each.status_code, each.text) for each in answers} == {(201, answers[0].text)}
    assert (charges(site), site.balance_cents()) == (1, 5_000)
    site.world.assert_sound()


def test_a_key_and_body_get_the_first_answer_for_ever_and_another_body_a_conflict(site: Site) -> None:
    method = site.world.save_card()
    first = site.top_up(5_000, key="a b~!")
    site.world.clock.move(days=30)
    assert (again := site.top_up(5_000, key="a b~!")).status_code == 201
    assert again.json() == first.json()
    assert_problem(site.top_up(5_001, key="a b~!"), 409, "idempotency_conflict")
    site.world.sandbox.fail_card(method)
    declined = site.top_up(5_000, key="x" * 255)
    assert_problem(declined, 402, "card_declined")
    site.world.sandbox.mend_card(method)
    assert site.top_up(5_000, key="x" * 255).json() == declined.json()
    assert (charges(site), site.balance_cents()) == (1, 5_000)
    site.world.assert_sound()


def test_a_502_is_not_kept_with_its_key(site: Site) -> None:
    site.world.save_card()
    site.world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation=CREATE, count=None)
    assert_problem(site.top_up(5_000, key="k"), 502, "provider_unavailable")
    site.world.sandbox.clear_faults()
    assert site.top_up(5_000, key="k").status_code == 201
    assert (charges(site), site.balance_cents()) == (1, 5_000)


@pytest.mark.parametrize("key", [None, "k"])
def test_charged_and_then_dropped_is_charged_once(site: Site, key: str | None) -> None:
    site.world.save_card()
    site.world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.*", count=None)
    for _ in range(2):
        assert_problem(site.top_up(5_000, key=key), 502, "provider_unavailable")
    assert charges(site) == 1
    site.world.sandbox.clear_faults()
    assert site.top_up(5_000, key=key).json()["status"] == "succeeded"
    assert (charges(site), site.balance_cents()) == (1, 5_000)
    site.world.assert_sound()


def test_whoever_was_told_and_asks_again_is_charged_again(site: Site) -> None:
    site.world.save_card()
    answers = [site.top_up(5_000) for _ in range(3)]
    assert len({each.json()["payment_intent_id"] for each in answers}) == 3
    assert (charges(site), site.balance_cents()) == (3, 15_000)
    site.world.assert_sound()


class SlowStripe:
    """A Stripe that lets every charge wait until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.waiting = 0
        self._lock = threading.Lock()
        charge = StripeApi.charge

        def waits(api: StripeApi, attempt: Attempt, **options: Any) -> Intent:
            with self._lock:
                self.waiting += 1
            assert self.go_on.wait(30)
            return charge(api, attempt, **options)

        monkeypatch.setattr(StripeApi, "charge", waits)


@pytest.fixture
def slow_stripe(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStripe]:
    slow = SlowStripe(monkeypatch)
    yield slow
    slow.go_on.set()


def send(site: Site, amount_cents: int) -> socket.socket:
    """Send a top-up on a connection of its own, that is left to the caller to end."""
    body = json.dumps({"amount_cents": amount_cents}).encode()
    lines = [
        "POST /v1/billing/top-up HTTP/1.1",
        "Host: here",
        f"Authorization: Bearer {site.key(1)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    address = urlsplit(site.url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=10)
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def leave(connection: socket.socket) -> None:
    """End the connection; the server knows of it when this returns, because it ended its own side."""
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b"", "answered before the client left"
    connection.close()


def test_a_client_that_left_before_its_answer_gets_it_with_an_identical_request(
    site: Site, slow_stripe: SlowStripe
) -> None:
    site.world.save_card()
    connection = send(site, 5_000)
    wait_until(lambda: slow_stripe.waiting, limit_s=30)
    leave(connection)
    slow_stripe.go_on.set()
    wait_until(lambda: site.balance_cents() == 5_000, limit_s=30)
    (charged,) = site.world.attempts()
    wait_until(lambda: site.world.attempts()[0].in_hand_until is None, limit_s=30)
    assert site.world.attempts()[0].answered_at is None
    again = site.top_up(5_000)
    assert again.json()["payment_intent_id"] == charged.payment_intent_id
    assert (charges(site), site.balance_cents()) == (1, 5_000)
    # Now somebody was told: the next one is another.
    assert site.top_up(5_000).status_code == 201
    assert (charges(site), site.balance_cents()) == (2, 10_000)
    site.world.assert_sound()


def test_slow_stripe_slows_nobody_who_asks_for_something_quick(site: Site, slow_stripe: SlowStripe) -> None:
    orgs = range(1, 2 + PROVIDER_THREADS // PROVIDER_THREADS_PER_ORG)
    for org_id in orgs:
        if org_id > 1:
            site.world.make_org(org_id)
        site.world.save_card(org_id=org_id)
        site.key(org_id)
    telephony = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
    numbers = [(org_id, 500 + number) for number in range(PROVIDER_THREADS_PER_ORG) for org_id in orgs]
    with ThreadPoolExecutor(len(numbers)) as threads, httpx.Client(base_url=site.url, timeout=30) as http:
        waiting = [threads.submit(site.top_up, cents, org_id=org_id) for org_id, cents in numbers]
        wait_until(lambda: slow_stripe.waiting == PROVIDER_THREADS, limit_s=20)
        for path, headers in [
            ("/v1/billing", site.headers(1)),
            ("/v1/billing/transactions", site.headers(1)),
            ("/v1/gate/1", site.headers(1)),
            ("/v1/gate/1", telephony),
            ("/readyz", {}),
        ] * 3:
            response = http.get(path, headers=headers)
            assert response.status_code in {200, 402}
        changed = http.patch("/v1/billing", json={"auto_reload_minimum_cents": 1}, headers=site.headers(1))
        assert changed.status_code == 200
        unsigned = http.post("/v1/stripe/webhook", content=b"{}")
        assert_problem(unsigned, 400, "invalid_signature")
        assert slow_stripe.waiting == PROVIDER_THREADS
        assert not any(each.done() for each in waiting)  # all that while they waited for Stripe
        slow_stripe.go_on.set()
        assert {each.result().status_code for each in waiting} == {201}
    site.world.assert_sound()


def test_an_org_that_asks_for_much_leaves_room_for_others(site: Site, slow_stripe: SlowStripe) -> None:
    site.world.save_card()
    site.world.make_org(2)
    site.world.save_card(org_id=2)
    site.key(1)
    number = PROVIDER_THREADS + 2
    with ThreadPoolExecutor(number + 1) as threads:
        many = [threads.submit(site.top_up, 500 + cents) for cents in range(number)]
        wait_until(lambda: slow_stripe.waiting == PROVIDER_THREADS_PER_ORG, limit_s=20)
        other = threads.submit(site.top_up, 500, org_id=2)
        wait_until(lambda: slow_stripe.waiting == PROVIDER_THREADS_PER_ORG + 1, limit_s=20)
        assert len(site.world.attempts(2)) == 1
        slow_stripe.go_on.set()
        assert {each.result().status_code for each in [*many, other]} == {201}
    site.world.assert_sound()


def test_more_than_may_wait_are_told_to_come_again(
    site: Site, slow_stripe: SlowStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world.save_card()
    site.key(1)
    monkeypatch.setattr(thread_pools, "MAX_WAITING_PER_ORG", 2)
    with ThreadPoolExecutor(PROVIDER_THREADS_PER_ORG + 2) as threads:
        first = [threads.submit(site.top_up, 500 + cents) for cents in range(PROVIDER_THREADS_PER_ORG)]
        wait_until(lambda: slow_stripe.waiting == PROVIDER_THREADS_PER_ORG, limit_s=20)
        more = [threads.submit(site.top_up, 600 + cents) for cents in range(2)]
        slots = site.context.thread_pools.provider.shares.slots_of(1)
        wait_until(lambda: slots.waiting == 2, limit_s=20)
        refused = site.top_up(700)
        assert_problem(refused, 429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        slow_stripe.go_on.set()
        assert {each.result().status_code for each in first + more} == {201}
    assert 700 not in {each.amount_cents for each in site.world.attempts()}


def test_a_top_up_in_hand_is_finished_when_the_server_is_told_to_stop(
    site: Site, redis_url: str, slow_stripe: SlowStripe
) -> None:
    site.world.save_card()
    database = Database(
        "", site.context.engine.url.render_as_string(hide_password=False), "", site.world.engine
    )

    def go_on_once_stopping(url: str) -> None:
        address = urlsplit(url)

        def refuses() -> bool:
            try:
                socket.create_connection((address.hostname or "", address.port or 0)).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refuses, limit_s=20)
        slow_stripe.go_on.set()

    with ThreadPoolExecutor(2) as threads, api_context(database, redis_url, site.world) as context:
        with served(make_app(context)) as url:
            body, headers = {"amount_cents": 5_000}, site.headers(1)
            answer = threads.submit(
                httpx.post, f"{url}/v1/billing/top-up", json=body, headers=headers, timeout=30
            )
            wait_until(lambda: slow_stripe.waiting == 1, limit_s=20)
            released = threads.submit(go_on_once_stopping, url)
        assert answer.result().json()["status"] == "succeeded"
        released.result()
    assert [each.answered_at is not None for each in site.world.attempts()] == [True]


def test_a_body_that_was_refused_costs_the_next_request_on_its_connection_nothing(
    site: Site, slow_stripe: SlowStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.1)
    site.world.save_card()
    too_long = (b" " * 10_000 for _ in range(100))
    headers = {**site.headers(1), "Content-Type": "application/json"}
    one_connection = httpx.Limits(max_connections=1)
    with (
        ThreadPoolExecutor(1) as threads,
        httpx.Client(base_url=site.url, timeout=30, limits=one_connection) as http,
    ):
        refused = http.post("/v1/billing/top-up", content=too_long, headers=headers)
        assert_problem(refused, 413, "body_too_large")
        answer = threads.submit(
            http.post, "/v1/billing/top-up", json={"amount_cents": 5_000}, headers=headers
        )
        wait_until(lambda: slow_stripe.waiting == 1, limit_s=20)
        assert not slow_stripe.go_on.wait(0.3)  # well past the time that is left to a refused body
        slow_stripe.go_on.set()
        assert answer.result().json()["status"] == "succeeded"
