"""What the demo says of charges, and where it finds that ledger, Stripe and customers disagree."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from db.attempts.outbox import FAILED_SIGNAL, SUCCEEDED_SIGNAL
from metering.sandbox.customers.cardholders import StandInCardholders
from metering.sandbox.customers.simulation import Customers
from metering.sandbox.telephony.signal_history import ReloadMessage
from metering.trials.demo.money import OrgMoney, charges_sentences, read_money, wrong_money
from tests.conftest import Database
from tests.payments.world import World, make_world


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation with org 1, without money or card."""
    with make_world(database, redis_client) as made:
        yield made


def test_money_is_what_came_by_card_less_what_went_back(world: World) -> None:
    world.make_org(2)  # without a customer at Stripe
    world.adjust(5_000)  # by an operator: no card's
    world.save_card()
    world.top_up(2_000)
    (attempt,) = world.attempts()
    world.sandbox.refund(attempt.payment_intent_id or "", amount_cents=150)
    cardholders = StandInCardholders(world.sandbox.url)
    assert read_money(world.engine, cardholders, [1, 2]) == [OrgMoney(1, 2_000, 1_850)]
    world.clock.move(minutes=1)
    world.reconcile()
    assert read_money(world.engine, cardholders, [1, 2]) == [OrgMoney(1, 1_850, 1_850)]


@pytest.mark.parametrize(
    ("ledger_cents", "stripe_cents", "told_cents", "wrong"),
    [
        (700, 700, {1: 700}, []),
        (1_600, 1_600, {1: 700}, []),  # reloads are nobody's to be told of
        (0, 0, {}, []),
        (700, 1_400, {1: 700}, ["Org 1: the ledger has 700 cents from its cards, Stripe holds 1400."]),
        (1_400, 700, {1: 700}, ["Org 1: the ledger has 1400 cents from its cards, Stripe holds 700."]),
        (
            700,
            700,
            {1: 701},
            ["Org 1 was told that it topped up 701 cents; the ledger has 700 from its cards."],
        ),
        (0, 0, {2: 5}, ["Org 2 was told that it topped up 5 cents; the ledger has 0 from its cards."]),
    ],
)
def test_disagreements_are_named(
    ledger_cents: int, stripe_cents: int, told_cents: dict[int, int], wrong: list[str]
) -> None:
    assert wrong_money([OrgMoney(1, ledger_cents, stripe_cents)], told_cents) == wrong


def played(**fields: Any) -> Customers:
    """Customers who have done what `fields` say."""
    customers = Customers({}, {}, StandInCardholders("http://127.0.0.1:1"), None)  # type: ignore[arg-type]  # they hear nothing
    for name, value in fields.items():
        setattr(customers, name, value)
    return customers


def test_what_happened_is_told() -> None:
    customers = played(
        answers=Counter(succeeded=4, requires_action=3, card_declined=2, authentication_required=1),
        authenticated=2,
        topped_up=Counter({1: 2_000, 2: 1_550}),
    )
    reloads = [
        *(ReloadMessage(SUCCEEDED_SIGNAL, 1, number, 900) for number in range(3)),
        ReloadMessage(FAILED_SIGNAL, 2, 9, 900, code="insufficient_funds"),
        ReloadMessage("auto_reload.skipped", 2, 10, reason="paused"),
        ReloadMessage("auto_reload.skipped", 3, 11, reason="monthly_limit"),
    ]
    assert charges_sentences(customers, reloads) == [
        "Top-ups over the API: 6 times, 2 after 3DS, 35.50 USD; 1 authentication_required; 2 card_declined; 1 waiting for 3DS.",
        "Auto-reloads: 3 times, 27.00 USD; 1 declined, insufficient_funds; 1 org waiting, monthly_limit; 1 org waiting, paused.",
    ]


def test_where_nothing_happened_little_is_told() -> None:
    assert charges_sentences(played(), []) == [
        "Top-ups over the API: 0 times, 0.00 USD.",
        "Auto-reloads: 0 times, 0.00 USD.",
    ]
