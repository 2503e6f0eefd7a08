"""What Stripe books in the account's settlement currency, fees included, is nothing to an org: it pays and loses USD."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from metering.payments.audit import REFUND_BOOKED, audit_against_stripe
from metering.payments.metrics import NOT_BOOKED_TOTAL
from metering.payments.settling import settle_and_follow
from metering.rules.payments import IntentSeen
from tests.payments.test_refunds_and_disputes import hear_all, paid, require
from tests.payments.world import World

ACCOUNTS: list[dict[str, Any]] = [
    {"currency": "eur", "exchange_rate": 0.85},
    {"currency": "gbp", "exchange_rate": 0.8, "fee_apart": True},
    {"currency": "jpy", "exchange_rate": 1.57, "fee_apart": True},
    {"currency": "usd", "fee_apart": True},
]


@pytest.fixture(params=ACCOUNTS, ids=lambda each: f"{each['currency']}-{each.get('fee_apart', False)}")
def settling(world: World, request: pytest.FixtureRequest) -> World:
    """An installation whose account at Stripe settles in some currency."""
    world.sandbox.set_settlement(**request.param)
    return world


@pytest.mark.parametrize("amount_cents", [None, 700])
def test_a_dispute_takes_its_own_amount_and_gives_it_back_if_won(
    settling: World, amount_cents: int | None
) -> None:
    intent = paid(settling)
    cents = amount_cents or 2_000
    dispute = settling.sandbox.open_dispute(intent, amount_cents=amount_cents)
    hear_all(settling)
    require(settling, ("credit", 2_000), ("refund", -cents))

    settling.sandbox.win_dispute(dispute["id"])
    hear_all(settling)
    require(settling, ("credit", 2_000), ("refund", -cents), ("adjustment", cents))


def test_refunds_are_booked_as_they_were_asked_for(settling: World) -> None:
    intent = paid(settling)
    settling.sandbox.fail_refund(settling.sandbox.refund(intent, amount_cents=300)["id"])
    settling.sandbox.refund(intent, amount_cents=500)
    settling.sandbox.open_dispute(intent)
    hear_all(settling)
    assert settling.balance() == settling.held_cents() == 0
    settling.assert_sound()


def test_an_inquiry_takes_nothing_until_its_funds_are_withdrawn(settling: World) -> None:
    intent = paid(settling)
    dispute = settling.sandbox.open_dispute(intent, inquiry=True)
    hear_all(settling)
    require(settling, ("credit", 2_000))
    settling.sandbox.escalate_dispute(dispute["id"])
    hear_all(settling)
    require(settling, ("credit", 2_000), ("refund", -2_000))


def entry(category: str, amount: int, **others: Any) -> dict[str, Any]:
    return {
        "object": "balance_transaction",
        "amount": amount,
        "currency": "gbp",
        "exchange_rate": 0.8,
        "fee": 0,
        "reporting_category": category,
        "type": "adjustment",
        **others,
    }


WITHDRAWN = entry("dispute", -1_600, fee=1_500)


@pytest.mark.parametrize(
    ("status", "entries", "booked_cents"),
    [
        ("needs_response", [], 0),
        ("needs_response", [WITHDRAWN], -2_000),
        ("needs_response", [WITHDRAWN, entry("fee", -1_500, type="stripe_fee")], -2_000),
        # Parted, or corrected for what the currency has done since: it took the dispute's amount all the same.
        ("under_review", [entry("dispute", -900), entry("dispute", -700)], -2_000),
        ("under_review", [WITHDRAWN, entry("other_adjustment", 13)], -2_000),
        ("lost", [WITHDRAWN, entry("other_adjustment", 13)], -2_000),
        ("won", [WITHDRAWN, entry("dispute_reversal", 1_588)], 0),
        ("won", [WITHDRAWN], -2_000),
        ("warning_needs_response", [entry("fee", -1_500, type="stripe_fee")], 0),
        ("warning_closed", [], 0),
        ("lost", [], 0),
    ],
)
def test_balance_transactions_say_whether_the_money_went_and_never_how_much(
    world: World, status: str, entries: list[dict[str, Any]], booked_cents: int
) -> None:
    """In shapes that others met (alphagov/pay-connector#5011, Automattic/woocommerce-payments#7287)."""
    intent = paid(world)
    dispute = world.sandbox.open_dispute(intent, inquiry=True)
    with world.sandbox._store.work() as work:
        work.edit(work.find(dispute["id"], "dispute", "id")).update(
            status=status, balance_transactions=entries
        )
    hear_all(world)
    assert world.balance() == 2_000 + booked_cents
    assert audit_against_stripe(world.engine, world.payments.stripe).violations == []


def test_a_dispute_in_another_currency_is_set_aside_and_told(world: World) -> None:
    """What it comes to in USD isn't known: somebody has to say."""
    intent = paid(world)
    world.sandbox.refund(intent, amount_cents=300)
    dispute = world.sandbox.open_dispute(intent, amount_cents=1_500, currency="eur")
    counted = NOT_BOOKED_TOTAL.labels("foreign_currency")._value.get

    before = counted()
    outcomes = world.deliver(*world.events("charge.dispute.funds_withdrawn"))

    assert outcomes == ["foreign_currency"]
    assert counted() == before + 1
    assert world.balance() == 1_700  # the refund, which the same look has found, is booked
    (found,) = audit_against_stripe(world.engine, world.payments.stripe).violations
    assert (found.invariant, found.org_id) == (REFUND_BOOKED, 1)
    assert dispute["id"] in found.detail
    assert "1500 eur" in found.detail

    world.adjust(-1_600, key=dispute["id"])
    assert audit_against_stripe(world.engine, world.payments.stripe).violations == []


def seen_as_before(world: World, intent: str, cents: int) -> None:
    """Book a dispute as the version before did, by what Stripe had booked in another currency."""
    stripe = world.payments.stripe
    (dispute,) = stripe.disputes_of(intent)
    wrong = replace(dispute, amount_cents=cents)
    settle_and_follow(world.payments, IntentSeen(stripe.retrieve_intent(intent), (), (wrong,)))


@pytest.mark.parametrize("wrong_cents", [1_700, 3_200])
def test_the_audit_sees_a_dispute_that_was_booked_wrong_and_what_corrects_it(
    world: World, wrong_cents: int
) -> None:
    world.sandbox.set_settlement("eur", exchange_rate=0.85)
    intent = paid(world)
    world.sandbox.open_dispute(intent)
    seen_as_before(world, intent, wrong_cents)
    assert world.balance() == 2_000 - wrong_cents

    (found,) = audit_against_stripe(world.engine, world.payments.stripe).violations
    assert (found.invariant, found.org_id) == (REFUND_BOOKED, 1)
    assert f"metering adjust 1 --cents {wrong_cents - 2_000}" in found.detail
    assert f"--key {intent}" in found.detail

    world.adjust(wrong_cents - 2_000, key=intent)
    hear_all(world)
    assert world.balance() == 0
    assert audit_against_stripe(world.engine, world.payments.stripe).violations == []


def test_a_settlement_currency_that_changes_moves_nothing(world: World) -> None:
    """Between a withdrawal and its return, as rates do every day."""
    steps: list[Callable[[], Any]] = [
        lambda: world.sandbox.set_settlement("gbp", exchange_rate=0.8),
        lambda: world.sandbox.open_dispute(world.intents()[0]["id"]),
        lambda: world.sandbox.set_settlement("gbp", exchange_rate=0.74),
        lambda: world.sandbox.win_dispute(world.stripe.v1.disputes.list().data[0].id),
    ]
    paid(world)
    for step in steps:
        step()
        hear_all(world)
    require(world, ("credit", 2_000), ("refund", -2_000), ("adjustment", 2_000))
