"""Refunds, disputes and the balance, as Stripe documents them."""

import pytest
import stripe

from tests.stripe_contract.making import charge_of, pay
from tests.stripe_contract.stand_ins import StandIn


def test_a_payment_is_refunded_whole(stand_in: StandIn) -> None:
    paid = pay(stand_in, 2_000)
    refund = stand_in.client.v1.refunds.create({"payment_intent": paid.id})
    assert refund.id.startswith("re_")
    charge = charge_of(stand_in.client, paid)
    assert (refund.amount, refund.status, refund.charge) == (2_000, "succeeded", charge.id)
    assert (charge.refunded, charge.amount_refunded) == (True, 2_000)


def test_parts_add_up(stand_in: StandIn) -> None:
    paid = pay(stand_in, 2_000)
    for amount in (300, 200):
        stand_in.client.v1.refunds.create({"payment_intent": paid.id, "amount": amount})
    charge = charge_of(stand_in.client, paid)
    assert (charge.refunded, charge.amount_refunded) == (False, 500)


def test_refunds_are_listed_by_payment(stand_in: StandIn) -> None:
    paid, other = pay(stand_in), pay(stand_in)
    made = {
        stand_in.client.v1.refunds.create({"payment_intent": paid.id, "amount": amount}).id
        for amount in (1, 2)
    }
    stand_in.client.v1.refunds.create({"payment_intent": other.id})
    listed = stand_in.client.v1.refunds.list({"payment_intent": paid.id})
    assert {each.id for each in listed.data} == made


def test_what_is_left_is_all_that_can_be_refunded(stand_in: StandIn) -> None:
    paid = pay(stand_in, 2_000)
    stand_in.client.v1.refunds.create({"payment_intent": paid.id, "amount": 1_500})
    with pytest.raises(stripe.InvalidRequestError):
        stand_in.client.v1.refunds.create({"payment_intent": paid.id, "amount": 501})
    assert stand_in.client.v1.refunds.create({"payment_intent": paid.id}).amount == 500


def test_nothing_is_refunded_twice(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    stand_in.client.v1.refunds.create({"payment_intent": paid.id})
    with pytest.raises(stripe.InvalidRequestError) as raised:
        stand_in.client.v1.refunds.create({"payment_intent": paid.id})
    assert raised.value.code == "charge_already_refunded"


def test_what_was_never_paid_is_not_refunded(client: stripe.StripeClient) -> None:
    unpaid = client.v1.payment_intents.create({"amount": 500, "currency": "usd"})
    with pytest.raises(stripe.InvalidRequestError) as raised:
        client.v1.refunds.create({"payment_intent": unpaid.id})
    assert raised.value.http_status == 400


def test_a_payment_without_disputes_has_none(stand_in: StandIn) -> None:
    paid = pay(stand_in)
    assert stand_in.client.v1.disputes.list({"payment_intent": paid.id}).data == []


def test_money_leaves_its_trace_in_the_balance(stand_in: StandIn) -> None:
    paid = pay(stand_in, 2_000)
    charge = stand_in.client.v1.charges.retrieve(
        charge_of(stand_in.client, paid).id, {"expand": ["balance_transaction"]}
    )
    assert isinstance(charge.balance_transaction, stripe.BalanceTransaction)
    transaction = charge.balance_transaction
    assert (transaction.amount, transaction.type, transaction.source) == (2_000, "charge", charge.id)
    assert transaction.net == transaction.amount - transaction.fee
