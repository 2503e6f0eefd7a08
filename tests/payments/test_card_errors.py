"""A card error without a PaymentIntent inside: it is told as what it is, a decline, and counts as one."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from db.attempts.reload_rule import read_standing
from db.postgres.engine import transaction
from metering.payments import stripe_requests
from metering.payments.cards import create_setup_intent, set_default_payment_method
from metering.payments.errors import CardDeclinedError, ProviderUnavailableError
from metering.payments.outcomes import CardDeclined
from metering.rules.payments import AttemptStatus
from metering.rules.reloads import LiftsWith
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import ReloadWorld

CREATE = "payment_intents.create"
DECLINED = CardDeclined("insufficient_funds", "Your card has insufficient funds.")


def meet_card_error(world: ReloadWorld, operation: str = CREATE) -> None:
    world.sandbox.set_fault(RequestFault.CARD_ERROR, operation=operation, count=1)


@pytest.mark.parametrize("key", [None, "a"])
def test_a_top_up_is_told_the_decline_and_the_next_one_is_made(
    reloading: ReloadWorld, key: str | None
) -> None:
    world = reloading
    world.save_card()
    meet_card_error(world)

    done = world.top_up(key=key)

    assert done.outcome == DECLINED
    if key is not None:
        assert world.top_up(key=key) == done
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.failure_code) == (AttemptStatus.FAILED, "insufficient_funds")
    assert world.balance() == 0
    world.top_up(key="b")
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_decline_that_no_client_was_told_is_told_to_whoever_asks_again(reloading: ReloadWorld) -> None:
    world = reloading
    world.save_card()
    meet_card_error(world)
    first = world.top_up(told=False)
    world.clock.move(minutes=2)

    assert world.top_up() == first

    assert (world.charged(), len(world.attempts())) == (0, 1)
    world.top_up()
    assert (world.charged(), world.balance()) == (1, 2_000)


def test_reloads_pause_as_after_any_soft_decline(reloading: ReloadWorld) -> None:
    world = reloading
    world.enable(amount=2_000)
    for declines, pause in ((1, timedelta(hours=1)), (2, timedelta(hours=24)), (3, None)):
        meet_card_error(world)
        world.reconcile()
        with transaction(world.engine) as connection:
            standing = read_standing(connection, 1)
        assert standing.declines == declines
        assert standing.pause is not None
        assert standing.pause.code == "insufficient_funds"
        if pause is None:
            assert standing.pause.lifts_with is LiftsWith.CHANGE
        else:
            assert standing.pause.until == world.clock.at + pause
            world.clock.move(seconds=pause.total_seconds())
    assert world.statuses() == ["failed"] * 3
    assert [each for each in world.said() if each.startswith("failed")] == ["failed insufficient_funds"] * 3
    world.save_card("pm_card_mastercard")
    world.work()
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


class WithoutIntents:
    """Stripe's answers as they come, the PaymentIntents inside their errors left out."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.after: Callable[[], None] = lambda: None
        real = stripe_requests.HttpClient.request

        def request(*asked: Any, **more: Any) -> Any:
            body, status, headers = real(*asked, **more)
            said = json.loads(body)
            if said.get("error", {}).pop("payment_intent", None) is not None:
                body = json.dumps(said)
                self.after()
            return body, status, headers

        patch.setattr(stripe_requests.HttpClient, "request", request)


@pytest.fixture
def without_intents(monkeypatch: pytest.MonkeyPatch) -> WithoutIntents:
    return WithoutIntents(monkeypatch)


def test_a_part_of_the_limit_is_free_only_when_it_is_certain_that_nothing_was_made(
    reloading: ReloadWorld, without_intents: WithoutIntents
) -> None:
    """The error names no PaymentIntent, but there is one: it is found, and cancelled before the month has its part back."""
    world = reloading
    method = world.enable(amount=2_000, limit=2_000)
    assert method is not None
    world.sandbox.fail_card(method, decline_code="insufficient_funds")
    lost = "payment_intents.list"
    without_intents.after = lambda: world.sandbox.set_fault(
        RequestFault.ERROR_BEFORE, operation=lost, count=2
    )
    world.work()
    assert world.statuses() == ["open"]  # whether there is one isn't known
    without_intents.after = lambda: None

    world.clock.move(minutes=2)
    world.reconcile()

    assert [each["status"] for each in world.reload_intents()] == ["canceled"]
    assert world.statuses() == ["failed"]
    pause = world.pause()
    assert pause is not None
    assert (pause.code, pause.lifts_with) == ("insufficient_funds", LiftsWith.TIME)
    world.assert_sound()


def test_a_top_up_whose_error_hides_its_intent_is_a_decline_of_that(
    reloading: ReloadWorld, without_intents: WithoutIntents
) -> None:
    world = reloading
    world.sandbox.fail_card(world.save_card(), decline_code="insufficient_funds")
    assert isinstance(world.top_up(key="a").outcome, CardDeclined)
    (attempt,) = world.attempts()
    assert attempt.payment_intent_id == world.intents()[0]["id"]


def test_a_top_up_of_which_it_is_not_certain_is_not_told_as_declined(
    reloading: ReloadWorld, without_intents: WithoutIntents
) -> None:
    world = reloading
    world.sandbox.fail_card(world.save_card(), decline_code="insufficient_funds")
    without_intents.after = lambda: world.sandbox.set_fault(
        RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=2
    )
    with pytest.raises(ProviderUnavailableError):
        world.top_up(key="a")
    without_intents.after = lambda: None
    world.clock.move(minutes=2)
    assert isinstance(world.top_up(key="a").outcome, CardDeclined)
    assert len(world.attempts()) == len(world.intents()) == 1


def test_who_saves_a_card_is_told_it_too(reloading: ReloadWorld) -> None:
    world = reloading
    method = world.save_card()
    customer = world.account().stripe_customer_id or ""
    for operation, ask in (
        ("payment_methods.retrieve", lambda: set_default_payment_method(world.payments, 1, method)),
        ("customers.update", lambda: set_default_payment_method(world.payments, 1, method)),
        ("setup_intents.create", lambda: create_setup_intent(world.payments, 1)),
        ("payment_methods.retrieve", lambda: world.top_up(method=world.sandbox.save_card(customer))),
    ):
        meet_card_error(world, operation)
        with pytest.raises(CardDeclinedError, match="insufficient funds"):
            ask()
    meet_card_error(world, "customers.create")
    world.make_org(2)
    with pytest.raises(CardDeclinedError, match="insufficient funds"):
        create_setup_intent(world.payments, 2)
