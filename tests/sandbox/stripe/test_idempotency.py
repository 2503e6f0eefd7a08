"""Idempotency keys where it hurts: many at once, days later, after failures."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.payments.world import MovableClock
from tests.sandbox.stripe.shop import Shop, error_of
from tests.waiting import wait_until


def test_fifty_at_once_with_one_key_charge_once(shop: Shop, sandbox: StripeSandbox) -> None:
    def pay(_: int) -> str:
        try:
            return shop.pay(key="one").id
        except stripe.APIError as error:  # one of the others is at it
            return f"{error.http_status}"

    sandbox.set_fault(RequestFault.HANG_BEFORE, operation="payment_intents.create", count=None, seconds=0.1)
    with ThreadPoolExecutor(50) as pool:
        answers = set(pool.map(pay, range(50)))
    assert answers - {"409"} == {shop.pay(key="one").id}
    assert len(shop.charges()) == 1
    assert sandbox.totals().executed["payment_intents.create"] == 1


def test_a_key_is_in_use_while_its_first_request_runs(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_fault(RequestFault.HANG_BEFORE, operation="payment_intents.create", seconds=1.0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shop.pay, key="slow")
        wait_until(lambda: sandbox.totals().asked.get("payment_intents.create"), limit_s=5)
        with pytest.raises(stripe.APIError) as raised:
            shop.pay(key="slow")
        assert (raised.value.http_status, error_of(raised)["code"]) == (409, "idempotency_key_in_use")
        with pytest.raises(stripe.IdempotencyError):
            shop.pay(2_001, key="slow")
        assert shop.pay(key="slower").status == "succeeded"
        assert first.result().status == "succeeded"
    assert len(shop.charges()) == 2
    assert shop.pay(key="slow").id == first.result().id


def test_a_key_is_forgotten_after_24_hours(shop: Shop, clock: MovableClock) -> None:
    first = shop.pay(key="old")
    clock.move(hours=23, minutes=59, seconds=59)
    assert shop.pay(key="old").id == first.id
    clock.move(seconds=1)
    assert shop.pay(key="old").id != first.id
    assert len(shop.charges()) == 2


def test_a_key_that_is_used_anew_lives_anew(shop: Shop, clock: MovableClock) -> None:
    shop.pay(key="old")
    clock.move(hours=24)
    second = shop.pay(key="old")
    clock.move(hours=23)
    assert shop.pay(key="old").id == second.id


def test_the_first_answer_stays_whatever_became_of_it(shop: Shop, client: stripe.StripeClient) -> None:
    made = shop.pay(key="k", confirm=False)
    client.v1.payment_intents.cancel(made.id)
    again = shop.pay(key="k", confirm=False)
    assert (again.id, again.status) == (made.id, "requires_confirmation")
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert again.last_response.headers["Request-Id"] != again.last_response.headers["Original-Request"]


def test_a_stored_500_is_all_that_its_key_ever_gets(shop: Shop, sandbox: StripeSandbox) -> None:
    sandbox.set_fault(RequestFault.ERROR_STORED, operation="payment_intents.create")
    for _ in range(2):
        with pytest.raises(stripe.APIError) as raised:
            shop.pay(key="doomed")
        assert raised.value.http_status == 500
    assert shop.charges() == []
    assert shop.pay(key="another").status == "succeeded"


def test_what_is_wrong_only_with_the_state_uses_the_key_up(shop: Shop, client: stripe.StripeClient) -> None:
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError):
            shop.pay(key="k", customer="cus_none")
    with pytest.raises(stripe.IdempotencyError):
        shop.pay(key="k")


def test_a_refused_request_leaves_nothing_behind(shop: Shop) -> None:
    before = shop.events()
    with pytest.raises(stripe.InvalidRequestError):  # found out only when it is to be confirmed
        shop.pay(return_url=None)
    assert shop.events() == before
    assert shop.client.v1.payment_intents.list({"customer": shop.customer}).data == []


def test_a_key_can_be_too_long(shop: Shop) -> None:
    assert shop.pay(key="k" * 255).status == "succeeded"
    with pytest.raises(stripe.InvalidRequestError, match="255"):
        shop.pay(key="k" * 256)


def test_the_order_of_parameters_makes_no_difference(shop: Shop) -> None:
    params = shop.params(metadata={"a": "1", "b": "2"})
    reordered: Any = dict(reversed(params.items())) | {"metadata": {"b": "2", "a": "1"}}
    first, second = (
        shop.client.v1.payment_intents.create(each, {"idempotency_key": "k"}) for each in (params, reordered)
    )
    assert first.id == second.id
