"""Top-ups of which nobody knows what became: charged once all the same, and the truth is told in the end."""

from collections.abc import Callable

import pytest

from metering.payments.errors import ProviderUnavailableError
from metering.payments.outcomes import TopUpMade
from metering.payments.top_ups import ToppedUp, mark_answered, mark_unanswered
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import crashing_at
from tests.payments.world import World

CREATE = "payment_intents.create"
CASES = [(1, None, False), (2, "a", False), (3, None, True), (4, "a", True)]
"""An org, the key that its client sends, and whether the reconciler comes before the client repeats."""


def fail(world: World, *, org_id: int = 1, key: str | None = None) -> None:
    """Top up, and get no outcome; then Stripe is well again."""
    with pytest.raises(ProviderUnavailableError):
        world.top_up(org_id=org_id, key=key)
    world.sandbox.clear_faults()


def save_cards(world: World) -> None:
    """Make the orgs of all cases, each with a card."""
    for org_id, _, _ in CASES:
        if org_id != 1:
            world.make_org(org_id)
        world.save_card(org_id=org_id)


def reconcile_later(world: World) -> None:
    world.clock.move(minutes=2)
    world.reconcile()


def let_charges_be_lost(world: World) -> None:
    """Stripe charges, and drops the connection; and then it can't be asked for what it did."""
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation=CREATE, count=1)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=3)


def let_no_charge_through(world: World) -> None:
    world.sandbox.set_fault(RequestFault.DROP_BEFORE, operation="payment_intents.*", count=4)


def require_one(world: World, done: ToppedUp, *, org_id: int = 1, of_attempts: int = 1) -> None:
    """The org has one charge and one credit, and it is what was told."""
    assert isinstance(done.outcome, TopUpMade), done
    assert done.outcome.status == "succeeded"
    assert world.balance(org_id) == world.held_cents(org_id) == 2_000
    attempts = world.attempts(org_id)
    assert len(attempts) == of_attempts
    assert attempts[-1].payment_intent_id == done.outcome.payment_intent_id
    world.assert_sound()


@pytest.mark.parametrize("lose", [let_charges_be_lost, let_no_charge_through])
def test_a_charge_whose_answer_is_lost_is_made_once(world: World, lose: Callable[[World], None]) -> None:
    save_cards(world)
    for org_id, key, reconciled in CASES:
        lose(world)
        fail(world, org_id=org_id, key=key)
        if reconciled:
            reconcile_later(world)
        require_one(world, world.top_up(org_id=org_id, key=key), org_id=org_id)
    assert world.charged() == len(CASES)


@pytest.mark.parametrize("fault", [RequestFault.ERROR_BEFORE, RequestFault.ERROR_AFTER])
def test_a_500_is_seen_through_at_once(world: World, fault: RequestFault) -> None:
    """One before the charge is repeated; one after it, which the key repeats for ever, is looked behind."""
    save_cards(world)
    for org_id, key, _ in CASES[:2]:
        world.sandbox.set_fault(fault, operation=CREATE)
        require_one(world, world.top_up(org_id=org_id, key=key), org_id=org_id)
    assert world.charged() == 2


@pytest.mark.parametrize("key", [None, "a"])
def test_a_500_without_a_charge_that_stripe_repeats_for_ever_ends_after_25_hours(
    world: World, key: str | None
) -> None:
    """No outcome is known while the key lives: a charge with another could be the second. Then nothing was charged."""
    world.save_card()
    world.sandbox.set_fault(RequestFault.ERROR_STORED, operation=CREATE)
    fail(world, key=key)
    for hours in (1, 21, 2, 0.9):
        world.clock.move(hours=hours)
        world.reconcile()
        assert [each.status for each in world.attempts()] == [AttemptStatus.OPEN]
    if key is not None:
        fail(world, key=key)
    world.clock.move(hours=1)
    world.reconcile()
    assert [each.status for each in world.attempts()] == [AttemptStatus.CANCELLED]

    require_one(world, world.top_up(key=key), of_attempts=2)


@pytest.mark.parametrize("reconciled", [False, True])
def test_a_client_that_hung_up_gets_its_charge_when_it_asks_again(world: World, reconciled: bool) -> None:
    world.save_card()
    first = world.top_up(told=False)
    mark_unanswered(world.payments, 1, first.attempt_id)
    if reconciled:
        world.clock.move(hours=23)
        world.reconcile()

    again = world.top_up()

    assert again == first
    require_one(world, again)
    world.top_up()  # it was told of the first one now: this is another wish
    assert world.charged() == 2


def test_hanging_up_after_having_been_told_changes_nothing(world: World) -> None:
    world.save_card()
    first = world.top_up()
    mark_unanswered(world.payments, 1, first.attempt_id)
    mark_answered(world.payments, 1, first.attempt_id)
    assert world.top_up().attempt_id != first.attempt_id


def test_an_identical_top_up_joins_for_24_hours_and_not_longer(world: World) -> None:
    world.save_card()
    first = world.top_up(told=False)
    mark_unanswered(world.payments, 1, first.attempt_id)
    world.clock.move(hours=24)
    assert world.top_up(told=False).attempt_id == first.attempt_id

    world.clock.move(seconds=1)
    assert world.top_up().attempt_id != first.attempt_id
    world.assert_sound()


def test_another_amount_or_another_card_joins_nothing(world: World) -> None:
    world.save_card()
    let_charges_be_lost(world)
    fail(world)
    customer = world.account().stripe_customer_id
    assert customer is not None
    other_card = world.sandbox.save_card(customer)

    world.top_up(2_001)
    world.top_up(method=other_card)
    world.top_up(method=world.account().default_payment_method_id)  # it is the default one: this is the first

    assert sorted(each["amount"] for each in world.intents()) == [2_000, 2_000, 2_001]
    assert world.balance() == world.held_cents() == 6_001
    world.assert_sound()


def test_a_keyless_repeat_joins_the_attempt_of_a_request_with_a_key_and_the_other_way_round(
    world: World,
) -> None:
    world.save_card()
    let_charges_be_lost(world)
    fail(world, key="a")
    first = world.top_up()
    assert world.top_up(key="a") == first
    require_one(world, first)

    let_charges_be_lost(world)
    fail(world)
    second = world.top_up(key="b")
    assert world.top_up(key="b") == second
    assert world.charged() == 2
    world.assert_sound()


def test_the_same_key_is_sent_for_23_hours_and_then_only_looked_for(world: World) -> None:
    world.save_card()
    let_no_charge_through(world)
    fail(world, key="a")
    world.clock.move(hours=22, minutes=59)
    world.sandbox.set_fault(RequestFault.DROP_BEFORE, operation="payment_intents.*", count=4)
    fail(world, key="a")
    sent = len(world.sandbox.requests(CREATE))
    assert sent == 4

    world.clock.move(minutes=1)
    looked_before = len(world.sandbox.requests("payment_intents.list"))
    fail(world, key="a")

    assert len(world.sandbox.requests(CREATE)) == sent
    assert len(world.sandbox.requests("payment_intents.list")) == looked_before + 1
    world.clock.move(hours=24)  # 25 h are counted from when it was last sent
    world.reconcile()
    assert world.attempts()[0].status is AttemptStatus.OPEN
    world.clock.move(hours=1)
    world.reconcile()
    assert world.attempts()[0].status is AttemptStatus.CANCELLED
    require_one(world, world.top_up(key="a"), of_attempts=2)


def test_a_charge_that_turns_up_after_the_key_was_forgotten_is_found_not_made_again(world: World) -> None:
    world.save_card()
    let_charges_be_lost(world)
    fail(world, key="a")
    world.clock.move(hours=24, minutes=30)  # and no reconciliation in all that time

    require_one(world, world.top_up(key="a"))


def test_a_hanging_charge_that_is_made_later_is_found_by_the_reconciler(world: World) -> None:
    """The request is torn off while Stripe still works on it."""
    world.save_card()
    with crashing_at(CrashPoint.CHARGE_BEFORE_SEND):
        world.top_up()
    (attempt,) = world.attempts()
    world.clock.move(minutes=2)
    world.reconcile()
    assert attempt.status is AttemptStatus.OPEN

    world.payments.stripe.charge(attempt)  # it was executed at last
    world.clock.move(minutes=2)
    world.process_due_attempts()

    assert world.balance() == world.held_cents() == 2_000
    require_one(world, world.top_up())


@pytest.mark.parametrize(
    "point",
    [
        CrashPoint.TOP_UP_AFTER_ATTEMPT,
        CrashPoint.CHARGE_BEFORE_SEND,
        CrashPoint.CHARGE_AFTER_SEND,
        CrashPoint.SETTLE_AFTER_WRITE,
        CrashPoint.SETTLE_AFTER_COMMIT,
        CrashPoint.TOP_UP_BEFORE_ANSWER,
    ],
)
def test_a_crash_anywhere_costs_the_client_a_repeat_and_nothing_else(world: World, point: CrashPoint) -> None:
    save_cards(world)
    for org_id, key, reconciled in CASES:
        with crashing_at(point):
            world.top_up(org_id=org_id, key=key)
            raise AssertionError(f"{point} was not reached")
        world.clock.move(minutes=2)
        if reconciled:
            reconcile_later(world)
        world.mend_gates()
        require_one(world, world.top_up(org_id=org_id, key=key), org_id=org_id)
    assert world.charged() == len(CASES)


def test_money_that_comes_after_an_attempt_was_given_up_is_credited_all_the_same(world: World) -> None:
    world.save_card()
    let_no_charge_through(world)
    fail(world)
    world.clock.move(hours=25)
    world.reconcile()
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.failure_code) == (AttemptStatus.CANCELLED, "never_charged")

    world.payments.stripe.charge(attempt)
    world.deliver(*world.events("payment_intent.succeeded"))

    (attempt,) = world.attempts()
    assert (attempt.status, attempt.failure_code) == (AttemptStatus.SUCCEEDED, None)
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_charge_that_cannot_be_booked_is_not_told_as_a_success_and_looked_at_less_and_less(
    world: World,
) -> None:
    """The key seems to be a live one, and the charge is a test's: a human has to say what is right."""
    world.save_card()
    with crashing_at(CrashPoint.CHARGE_AFTER_SEND):
        world.top_up()
    set_livemode(world, True)
    for _ in range(60):
        world.clock.move(minutes=1)
        world.process_due_attempts()
    assert 3 < len(world.sandbox.requests("payment_intents.list")) < 12
    assert world.balance() == 0

    set_livemode(world, False)
    world.clock.move(hours=1)
    world.process_due_attempts()
    require_one(world, world.top_up())


def set_livemode(world: World, live: bool) -> None:
    api = world.payments.stripe
    getattr(api, "_api", api).livemode = live
