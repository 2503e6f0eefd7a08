"""Faults: what each does to a request, and to what only the request's key still knows."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from http.client import HTTPConnection
from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.answering import Answering
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.payments.world import MovableClock
from tests.sandbox.stripe.shop import Shop, error_of
from tests.waiting import wait_until

CREATE = "payment_intents.create"


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        (RequestFault.UNAUTHORIZED, 401, stripe.AuthenticationError),
        (RequestFault.FORBIDDEN, 403, stripe.PermissionError),
        (RequestFault.CONFLICT, 409, stripe.APIError),
        (RequestFault.RATE_LIMITED, 429, stripe.RateLimitError),
        (RequestFault.LOCK_TIMEOUT, 429, stripe.RateLimitError),
        (RequestFault.ERROR_BEFORE, 500, stripe.APIError),
    ],
)
def test_a_refusal_executes_nothing_and_uses_no_key_up(
    shop: Shop, sandbox: StripeSandbox, kind: RequestFault, status: int, error: type[stripe.StripeError]
) -> None:
    sandbox.set_fault(kind, operation=CREATE, count=2)
    for _ in range(2):
        with pytest.raises(error) as raised:
            shop.pay(key="k")
        assert raised.value.http_status == status
        assert shop.charges() == []
    assert shop.pay(key="k").status == "succeeded"
    assert sandbox.totals().faults_met == {kind.value: 2}


def test_a_card_error_without_an_intent_is_kept_by_its_key(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_fault(RequestFault.CARD_ERROR, operation=CREATE)
    for _ in range(2):
        with pytest.raises(stripe.CardError) as raised:
            shop.pay(key="k")
        assert (raised.value.http_status, raised.value.code) == (402, "card_declined")
        body: Any = raised.value.json_body
        assert set(body["error"]) == {"code", "decline_code", "doc_url", "message", "request_log_url", "type"}
    assert shop.charges() == []
    assert shop.pay(key="l").status == "succeeded"


def test_it_charges_and_says_500(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_fault(RequestFault.ERROR_AFTER, operation=CREATE)
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            shop.pay(key="k")
    assert len(shop.charges()) == 1


@pytest.mark.parametrize("kind", [RequestFault.DROP_BEFORE, RequestFault.DROP_AFTER])
def test_a_dropped_connection_is_no_answer(shop: Shop, sandbox: StripeSandbox, kind: RequestFault) -> None:
    sandbox.set_fault(kind, operation=CREATE)
    with pytest.raises(stripe.APIConnectionError):
        shop.pay(key="k")
    assert len(shop.charges()) == (kind is RequestFault.DROP_AFTER)
    assert shop.pay(key="k").status == "succeeded"
    assert len(shop.charges()) == 1


def test_the_sdks_own_repeat_gets_the_answer_that_was_dropped(shop: Shop, sandbox: StripeSandbox) -> None:
    patient = stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.url}, max_network_retries=1)
    sandbox.set_fault(RequestFault.DROP_AFTER, operation=CREATE)
    assert patient.v1.payment_intents.create(shop.params()).status == "succeeded"
    assert len(shop.charges()) == 1
    first, second = (made.idempotency_key for made in sandbox.requests(CREATE))
    assert first == second is not None


def test_a_request_that_hangs_charges_after_its_client_has_gone(shop: Shop, sandbox: StripeSandbox) -> None:
    impatient = stripe.StripeClient(
        sandbox.api_key,
        base_addresses={"api": sandbox.url},
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=0.1),
    )
    sandbox.set_fault(RequestFault.HANG_BEFORE, operation=CREATE, seconds=1.0)
    with pytest.raises(stripe.APIConnectionError):
        impatient.v1.payment_intents.create(shop.params(), {"idempotency_key": "k"})
    assert shop.charges() == []
    wait_until(shop.charges, limit_s=5)
    assert shop.pay(key="k").status == "succeeded"
    assert len(shop.charges()) == 1


def test_an_answer_that_hangs_is_kept_at_once(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_fault(RequestFault.HANG_AFTER, operation=CREATE, seconds=0.5)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shop.pay, key="k")
        wait_until(shop.charges, limit_s=5)
        assert shop.pay(key="k").id == slow.result().id
    assert len(shop.charges()) == 1


def test_a_stop_does_not_wait_for_what_hangs(clock: MovableClock) -> None:
    with StripeSandbox(clock=clock) as sandbox, ThreadPoolExecutor(1) as pool:
        client = stripe.StripeClient(
            sandbox.api_key, base_addresses={"api": sandbox.url}, max_network_retries=0
        )
        sandbox.set_fault(RequestFault.HANG_BEFORE, seconds=60)
        hanging = pool.submit(client.v1.customers.create, {})
        wait_until(lambda: sandbox.totals().asked, limit_s=5)
        began_s = time.monotonic()
        sandbox.__exit__(None, None, None)
        assert time.monotonic() - began_s < 5
        with pytest.raises(stripe.APIConnectionError):
            hanging.result()


@pytest.mark.parametrize(("hours", "lost"), [(0.99, False), (1, True)])
def test_a_request_over_which_the_clock_was_set_forward_is_lost(
    shop: Shop,
    sandbox: StripeSandbox,
    clock: MovableClock,
    monkeypatch: pytest.MonkeyPatch,
    hours: float,
    lost: bool,
) -> None:
    """Days can't pass while a request is under way: a key that was good when it was sent would be forgotten when it arrives."""
    monkeypatch.setattr(Answering, "_wait", lambda *_: clock.move(hours=hours))
    sandbox.set_latency(0.001)
    with pytest.raises(stripe.APIConnectionError) if lost else nullcontext():
        shop.pay()
    sandbox.set_latency(0.0)
    assert len(shop.charges()) == (0 if lost else 1)


def test_faults_are_for_some_operations_in_the_order_they_were_set(
    shop: Shop, sandbox: StripeSandbox
) -> None:
    sandbox.set_fault(RequestFault.RATE_LIMITED, operation="payment_intents.*")
    sandbox.set_fault(RequestFault.FORBIDDEN, operation=CREATE)
    assert shop.client.v1.customers.retrieve(shop.customer).id == shop.customer
    with pytest.raises(stripe.RateLimitError):
        shop.client.v1.payment_intents.list()
    assert shop.client.v1.payment_intents.list().data == []
    with pytest.raises(stripe.PermissionError):
        shop.pay()
    assert (shop.pay().status, sandbox.faults_left()) == ("succeeded", 0)


def test_a_fault_can_last_for_a_time(shop: Shop, sandbox: StripeSandbox, clock: MovableClock) -> None:
    sandbox.set_fault(RequestFault.UNAUTHORIZED, count=None, for_s=3_600)
    for _ in range(3):
        with pytest.raises(stripe.AuthenticationError):
            shop.pay()
    clock.move(hours=1)
    assert shop.pay().status == "succeeded"


def test_faults_are_cleared(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_fault(RequestFault.ERROR_BEFORE, count=None)
    sandbox.set_latency(5)
    sandbox.clear_faults()
    assert shop.pay().status == "succeeded"


def test_latency_is_for_every_request(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_latency(0.05)
    began_s = time.monotonic()
    shop.retrieve(shop.pay().id)
    assert time.monotonic() - began_s >= 0.1


def test_chaos_is_the_same_for_the_same_seed(shop: Shop, sandbox: StripeSandbox) -> None:
    def outcomes(seed: int) -> list[str]:
        rates = {RequestFault.ERROR_BEFORE: 0.3, RequestFault.DROP_AFTER: 0.3}
        sandbox.set_chaos(seed, requests=rates, operation="payment_intents.list")
        seen = []
        for _ in range(20):
            try:
                shop.client.v1.payment_intents.list()
                seen.append("fine")
            except stripe.StripeError as error:
                seen.append(type(error).__name__)
        return seen

    first = outcomes(7)
    assert outcomes(7) == first
    assert set(first) == {"fine", "APIError", "APIConnectionError"}
    assert outcomes(8) != first


def test_an_old_key_is_refused_after_a_rotation(shop: Shop, sandbox: StripeSandbox) -> None:
    old = sandbox.api_key
    overlapping = sandbox.rotate_api_key(keep_old=True)
    assert shop.pay().status == "succeeded"
    new = sandbox.rotate_api_key()
    assert sandbox.api_key == new != overlapping != old
    with pytest.raises(stripe.AuthenticationError) as raised:
        shop.pay()
    assert error_of(raised)["type"] == "invalid_request_error"
    assert old not in str(error_of(raised))
    client = stripe.StripeClient(new, base_addresses={"api": sandbox.url})
    assert client.v1.customers.retrieve(shop.customer).id == shop.customer


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer sk_test_sandbox", 200),
        (f"Basic {base64.b64encode(b'sk_test_sandbox:').decode()}", 200),
        (f"Basic {base64.b64encode(b'sk_test_other:').decode()}", 401),
        ("Basic !", 401),
        ("Bearer ", 401),
        (None, 401),
    ],
)
def test_keys_are_bearers_or_basic(sandbox: StripeSandbox, authorization: str | None, status: int) -> None:
    connection = HTTPConnection(sandbox.url.removeprefix("http://"))
    headers = {} if authorization is None else {"Authorization": authorization}
    connection.request("GET", "/v1/balance", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Stripe-Sandbox"]) == (status, "not-stripe")
    assert answer.headers["Request-Id"].startswith("req_")
    connection.close()


def test_live_keys_are_never_taken() -> None:
    with pytest.raises(ValueError, match="sk_test_"):
        StripeSandbox(api_keys=["sk_live_x"])
