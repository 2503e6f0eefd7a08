"""Refunds and disputes: what they do to what Stripe holds, and the events that tell it."""

from typing import Any

import pytest
import stripe

from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop


def _since(shop: Shop, before: list[str]) -> list[str]:
    return shop.events()[len(before) :]


def test_a_refund_that_fails_gives_the_money_back(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay(2_000)
    refund = sandbox.refund(paid.id, amount_cents=700)
    assert shop.net() == 1_300
    before = shop.events()
    failed = sandbox.fail_refund(refund["id"], reason="expired_or_canceled_card")
    assert (failed["status"], failed["failure_reason"]) == ("failed", "expired_or_canceled_card")
    assert failed["failure_balance_transaction"].startswith("txn_")
    assert shop.net() == 2_000
    assert shop.charges()[0].amount_refunded == 0
    assert _since(shop, before) == ["refund.updated", "charge.refund.updated", "refund.failed"]
    with pytest.raises(StripeError):
        sandbox.fail_refund(refund["id"])
    assert sandbox.refund(paid.id)["amount"] == 2_000


def test_a_pending_refund_has_taken_the_money_already(shop: Shop, sandbox: StripeSandbox) -> None:
    shop.save("pm_card_pendingRefund")
    refund = sandbox.refund(shop.pay().id)
    assert (refund["status"], shop.net()) == ("pending", 0)
    assert sandbox.settle_refund(refund["id"])["status"] == "succeeded"
    assert shop.net() == 0


def test_a_refund_is_answered_and_fails_right_afterwards(shop: Shop) -> None:
    shop.save("pm_card_refundFail")
    answered = shop.client.v1.refunds.create({"payment_intent": shop.pay().id})
    assert answered.status == "succeeded"
    assert shop.client.v1.refunds.retrieve(answered.id).status == "failed"
    assert shop.net() == 2_000


def test_charge_refunded_counts_up(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay(2_000)
    for amount in (300, 200):
        sandbox.refund(paid.id, amount_cents=amount)
    events: Any = shop.client.v1.events.list({"type": "charge.refunded"}).data
    counted = [
        (each.data.object["amount_refunded"], each.data.to_dict()["previous_attributes"]["amount_refunded"])
        for each in events
    ]
    assert counted == [(500, 300), (300, 0)]


def test_a_dispute_takes_the_money_at_once_and_gives_it_back_when_won(
    shop: Shop, sandbox: StripeSandbox
) -> None:
    paid = shop.pay(2_000)
    before = shop.events()
    dispute = sandbox.open_dispute(paid.id)
    assert (dispute["status"], dispute["amount"], shop.net()) == ("needs_response", 2_000, 0)
    assert [each["amount"] for each in dispute["balance_transactions"]] == [-2_000]
    assert shop.charges()[0].disputed
    won = sandbox.win_dispute(dispute["id"])
    assert (won["status"], shop.net()) == ("won", 2_000)
    assert [each["amount"] for each in won["balance_transactions"]] == [-2_000, 2_000]
    assert _since(shop, before) == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
        "charge.dispute.funds_reinstated",
    ]


def test_a_lost_dispute_keeps_the_money(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay(2_000)
    dispute = sandbox.open_dispute(paid.id, amount_cents=500)
    lost = sandbox.lose_dispute(dispute["id"])
    assert (lost["status"], shop.net()) == ("lost", 1_500)
    assert shop.events()[-1] == "charge.dispute.closed"
    with pytest.raises(StripeError):
        sandbox.win_dispute(dispute["id"])


def test_balance_transactions_are_in_the_currency_that_the_account_settles_in(
    shop: Shop, sandbox: StripeSandbox
) -> None:
    """As Stripe makes them: amount, net and fee in that currency, and by which rate they were converted."""
    sandbox.set_settlement("gbp", exchange_rate=0.8, fee_apart=True)
    paid = shop.pay(2_000)
    dispute = sandbox.win_dispute(sandbox.open_dispute(paid.id)["id"])
    assert (dispute["amount"], dispute["currency"]) == (2_000, "usd")
    told = ("reporting_category", "type", "amount", "currency", "exchange_rate", "fee")
    assert [tuple(each[name] for name in told) for each in dispute["balance_transactions"]] == [
        ("dispute", "adjustment", -1_600, "gbp", 0.8, 0),
        ("fee", "stripe_fee", -1_500, "gbp", None, 0),
        ("dispute_reversal", "adjustment", 1_600, "gbp", 0.8, 0),
    ]
    charge, *_ = shop.client.v1.balance_transactions.list({"type": "charge"}).data
    assert (charge.amount, charge.currency, charge.net) == (1_600, "gbp", 1_600 - charge.fee)
    assert shop.net() == 2_000
    sandbox.set_settlement()
    assert sandbox.open_dispute(shop.pay(2_000).id)["balance_transactions"][0]["currency"] == "usd"


def test_an_inquiry_takes_nothing(shop: Shop, sandbox: StripeSandbox) -> None:
    inquiry = sandbox.open_dispute(shop.pay(2_000).id, inquiry=True)
    assert (inquiry["status"], inquiry["balance_transactions"]) == ("warning_needs_response", [])
    assert shop.events()[-1] == "charge.dispute.created"
    assert sandbox.win_dispute(inquiry["id"])["status"] == "warning_closed"
    assert shop.net() == 2_000


def test_an_inquiry_can_become_a_dispute(shop: Shop, sandbox: StripeSandbox) -> None:
    inquiry = sandbox.open_dispute(shop.pay(2_000).id, inquiry=True)
    assert sandbox.escalate_dispute(inquiry["id"])["status"] == "needs_response"
    assert shop.net() == 0
    assert shop.events()[-2:] == ["charge.dispute.updated", "charge.dispute.funds_withdrawn"]
    with pytest.raises(StripeError):
        sandbox.escalate_dispute(inquiry["id"])


def test_a_refund_ends_an_inquiry(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay(2_000)
    inquiry = sandbox.open_dispute(paid.id, inquiry=True)
    sandbox.refund(paid.id)
    assert shop.client.v1.disputes.retrieve(inquiry["id"]).status == "warning_closed"
    assert shop.net() == 0


def test_a_disputed_charge_is_not_refunded(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay()
    sandbox.open_dispute(paid.id)
    with pytest.raises(stripe.InvalidRequestError) as raised:
        shop.client.v1.refunds.create({"payment_intent": paid.id})
    assert raised.value.code == "charge_disputed"
    assert shop.net() == 0


def test_nobody_disputes_what_is_not_there(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay(2_000)
    sandbox.refund(paid.id, amount_cents=1_500)
    with pytest.raises(StripeError):
        sandbox.open_dispute(paid.id, amount_cents=501)
    assert sandbox.open_dispute(paid.id)["amount"] == 500
    with pytest.raises(StripeError):
        sandbox.open_dispute(paid.id)
    assert shop.net() == 0


@pytest.mark.parametrize(
    ("evidence", "status", "net"), [("winning_evidence", "won", 2_000), ("losing_evidence", "lost", 0)]
)
def test_stripes_test_evidence_decides(shop: Shop, evidence: str, status: str, net: int) -> None:
    shop.save("pm_card_createDispute")
    paid = shop.pay(2_000)
    (dispute,) = shop.client.v1.disputes.list({"payment_intent": paid.id}).data
    answered = shop.client.v1.disputes.update(dispute.id, {"evidence": {"uncategorized_text": evidence}})
    assert (answered.status, shop.net()) == (status, net)


def test_a_dispute_that_is_given_up_is_lost(shop: Shop) -> None:
    shop.save("pm_card_createDisputeProductNotReceived")
    (dispute,) = shop.client.v1.disputes.list({"payment_intent": shop.pay().id}).data
    assert dispute.reason == "product_not_received"
    assert shop.client.v1.disputes.close(dispute.id).status == "lost"


def test_the_inquiry_card_is_inquired_about(shop: Shop) -> None:
    shop.save("pm_card_createDisputeInquiry")
    (dispute,) = shop.client.v1.disputes.list({"payment_intent": shop.pay().id}).data
    assert (dispute.status, shop.net()) == ("warning_needs_response", 2_000)


def test_holdings_are_each_customers_own(shop: Shop, sandbox: StripeSandbox) -> None:
    other = Shop(sandbox, shop.client)
    paid, _ = shop.pay(2_000), shop.pay(300)
    other.pay(5_000)
    sandbox.refund(paid.id, amount_cents=500)
    sandbox.open_dispute(paid.id, amount_cents=1_000)
    held = sandbox.holdings()[shop.customer]
    assert (held.received_cents, held.refunded_cents, held.disputed_cents, held.net_cents) == (
        2_300,
        500,
        1_000,
        800,
    )
    assert other.net() == 5_000
    totals = sandbox.totals()
    assert (totals.charges, totals.received_cents, totals.net_cents) == (3, 7_300, 5_800)


def test_the_balance_is_the_sum_of_its_transactions(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay(2_000)
    sandbox.refund(paid.id, amount_cents=500)
    sandbox.win_dispute(sandbox.open_dispute(paid.id)["id"])
    transactions = shop.client.v1.balance_transactions.list({"limit": 100}).data
    assert sum(each.amount for each in transactions) == shop.net() == 1_500
    assert all(each.net == each.amount - each.fee for each in transactions)
    (available,) = shop.client.v1.balance.retrieve().available
    assert available.amount == sum(each.net for each in transactions)
