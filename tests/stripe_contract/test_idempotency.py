"""Idempotency keys, as Stripe documents them."""

from uuid import uuid4

import pytest
import stripe

from tests.sandbox.stripe.shop import error_of
from tests.stripe_contract.making import ATTACHES_THEN_FAILS, customer_with_card, paying
from tests.stripe_contract.stand_ins import StandIn


def test_a_key_gets_its_first_answer_again(client: stripe.StripeClient) -> None:
    key = str(uuid4())
    first, second = (
        client.v1.payment_intents.create({"amount": 500, "currency": "usd"}, {"idempotency_key": key})
        for _ in range(2)
    )
    assert first.id == second.id
    assert second.last_response is not None
    assert second.last_response.headers["Idempotent-Replayed"] == "true"


def test_another_key_is_another_request(client: stripe.StripeClient) -> None:
    first, second = (
        client.v1.payment_intents.create(
            {"amount": 500, "currency": "usd"}, {"idempotency_key": str(uuid4())}
        )
        for _ in range(2)
    )
    assert first.id != second.id


def test_a_key_is_for_one_set_of_parameters(client: stripe.StripeClient) -> None:
    key = str(uuid4())
    client.v1.payment_intents.create({"amount": 500, "currency": "usd"}, {"idempotency_key": key})
    with pytest.raises(stripe.IdempotencyError) as raised:
        client.v1.payment_intents.create({"amount": 501, "currency": "usd"}, {"idempotency_key": key})
    assert raised.value.http_status == 400


def test_a_key_is_for_one_endpoint(client: stripe.StripeClient) -> None:
    key = str(uuid4())
    client.v1.customers.create({"description": "x"}, {"idempotency_key": key})
    with pytest.raises(stripe.IdempotencyError):
        client.v1.setup_intents.create({"description": "x"}, {"idempotency_key": key})


def test_a_decline_is_an_answer_too(stand_in: StandIn) -> None:
    key = str(uuid4())
    customer_id, method_id = customer_with_card(stand_in.client, ATTACHES_THEN_FAILS)
    charges = set()
    for _ in range(2):
        with pytest.raises(stripe.CardError) as raised:
            stand_in.client.v1.payment_intents.create(
                paying(stand_in, customer_id, method_id), {"idempotency_key": key}
            )
        charges.add(error_of(raised)["charge"])
    assert len(charges) == 1


def test_parameters_that_are_refused_use_no_key_up(client: stripe.StripeClient) -> None:
    key = str(uuid4())
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.payment_intents.create({"amount": 500}, {"idempotency_key": key})  # type: ignore[typeddict-item]
    made = client.v1.payment_intents.create({"amount": 500, "currency": "usd"}, {"idempotency_key": key})
    assert made.status == "requires_payment_method"
