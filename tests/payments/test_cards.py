"""Customers at Stripe, made once, and the cards that they save."""

from typing import Any

import pytest

from db.models.errors import OrgError
from metering.payments.cards import create_setup_intent, ensure_customer, set_default_payment_method
from metering.payments.errors import InvalidPaymentMethodError, ProviderUnavailableError
from metering.payments.outcomes import SetupIntentMade
from metering.payments.stripe_api import StripeApi
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.together import together
from tests.payments.world import World

CREATE_CUSTOMER = "customers.create"


def customers(world: World) -> list[dict[str, Any]]:
    return [each.to_dict() for each in world.stripe.v1.customers.list({"limit": 100}).data]


def default_at_stripe(world: World) -> str | None:
    """What Stripe's own pages show as the customer's card."""
    (customer,) = customers(world)
    method: str | None = customer["invoice_settings"]["default_payment_method"]
    return method


def test_a_customer_is_made_when_it_is_first_needed_and_then_kept(world: World) -> None:
    assert customers(world) == []
    first = create_setup_intent(world.payments, 1)
    create_setup_intent(world.payments, 1)

    (customer,) = customers(world)
    assert customer["id"] == world.account().stripe_customer_id
    assert customer["metadata"] == {"org_id": "1"}
    setup = world.stripe.v1.setup_intents.retrieve(first.setup_intent_id).to_dict()
    assert setup["customer"] == customer["id"]
    assert setup["usage"] == "off_session"
    assert setup["client_secret"] == first.client_secret


def test_twenty_that_need_it_at_once_get_one_customer(world: World) -> None:
    made = together(*[lambda: create_setup_intent(world.payments, 1)] * 20)
    assert len(customers(world)) == 1
    assert all(isinstance(each, SetupIntentMade | ProviderUnavailableError) for each in made), made
    assert sum(isinstance(each, SetupIntentMade) for each in made) > 0
    create_setup_intent(world.payments, 1)
    assert len(customers(world)) == 1


def test_each_org_has_a_customer_of_its_own(world: World) -> None:
    world.make_org(2)
    assert ensure_customer(world.payments, 1) != ensure_customer(world.payments, 2)


@pytest.mark.parametrize("fault", [RequestFault.DROP_AFTER, RequestFault.DROP_BEFORE])
def test_a_customer_whose_making_was_not_answered_is_made_once_all_the_same(
    world: World, fault: RequestFault
) -> None:
    world.sandbox.set_fault(fault, operation=CREATE_CUSTOMER, count=2)
    with pytest.raises(ProviderUnavailableError):
        create_setup_intent(world.payments, 1)
    create_setup_intent(world.payments, 1)
    assert len(customers(world)) == 1


@pytest.mark.parametrize("fault", [RequestFault.ERROR_STORED, RequestFault.ERROR_AFTER])
def test_an_error_that_stripe_repeats_for_the_key_shuts_nobody_out(world: World, fault: RequestFault) -> None:
    """A customer more, who never pays, costs nothing; a day without one costs a customer of ours."""
    world.sandbox.set_fault(fault, operation=CREATE_CUSTOMER)
    with pytest.raises(ProviderUnavailableError):
        create_setup_intent(world.payments, 1)

    create_setup_intent(world.payments, 1)
    create_setup_intent(world.payments, 1)
    assert world.sandbox.totals().executed[CREATE_CUSTOMER] == 2
    assert world.account().stripe_customer_id == customers(world)[0]["id"]


def test_an_org_that_is_not_there_has_none(world: World) -> None:
    for do in (ensure_customer, create_setup_intent):
        with pytest.raises(OrgError):
            do(world.payments, 99)
    assert customers(world) == []


def test_the_default_card_is_set_here_and_at_stripe(world: World) -> None:
    assert not world.account().has_payment_method
    first = world.save_card()
    assert world.account().has_payment_method
    assert world.account().default_payment_method_id == default_at_stripe(world) == first

    second = world.save_card("pm_card_mastercard")
    assert world.account().default_payment_method_id == default_at_stripe(world) == second


def test_a_card_that_is_not_this_orgs_is_never_its_default(world: World) -> None:
    mine = world.save_card()
    world.make_org(2)
    theirs = world.save_card(org_id=2)
    loose = world.stripe.v1.payment_methods.create({"type": "card", "card": {"token": "tok_visa"}}).id
    for method in (theirs, loose, "pm_card_visa", "pm_nothing", "", "x" * 5_000):
        with pytest.raises(InvalidPaymentMethodError):
            set_default_payment_method(world.payments, 1, method)
    assert world.account().default_payment_method_id == mine


def test_an_org_without_a_customer_has_no_card_to_choose(world: World) -> None:
    with pytest.raises(InvalidPaymentMethodError):
        set_default_payment_method(world.payments, 1, "pm_card_visa")
    assert world.sandbox.totals().asked == {}


@pytest.mark.parametrize("operation", ["payment_methods.retrieve", "customers.update"])
def test_a_default_that_stripe_was_not_told_of_is_none_here(world: World, operation: str) -> None:
    first = world.save_card()
    second = world.sandbox.save_card(world.account().stripe_customer_id or "")
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation=operation, count=2)
    with pytest.raises(ProviderUnavailableError):
        set_default_payment_method(world.payments, 1, second)
    assert world.account().default_payment_method_id == first
    set_default_payment_method(world.payments, 1, second)
    assert world.account().default_payment_method_id == second


def test_a_setup_intent_that_succeeds_makes_its_card_ready_and_not_the_default(world: World) -> None:
    made = create_setup_intent(world.payments, 1)
    method = world.sandbox.confirm_setup(made.setup_intent_id)

    assert world.deliver(*world.events("setup_intent.succeeded")) == ["card_ready"]

    assert world.rows("SELECT org_id, payment_method_id, detached_at FROM payment_methods") == [
        (1, method, None)
    ]
    assert not world.account().has_payment_method
    set_default_payment_method(world.payments, 1, method)
    assert world.account().has_payment_method


def test_a_setup_intent_that_fails_makes_nothing_ready(world: World) -> None:
    made = create_setup_intent(world.payments, 1)
    with pytest.raises(StripeError):
        world.sandbox.confirm_setup(made.setup_intent_id, card="pm_card_chargeDeclined")
    world.deliver(*world.events())
    assert world.rows("SELECT * FROM payment_methods") == []


def test_cards_of_customers_that_are_not_ours_are_answered_and_left(world: World) -> None:
    stranger = world.stripe.v1.customers.create({"name": "a stranger"}).id
    method = world.sandbox.save_card(stranger)
    world.sandbox.detach(method)
    kinds = ("setup_intent.succeeded", "payment_method.detached")
    outcomes = world.deliver(*[event for kind in kinds for event in world.events(kind)])
    assert outcomes == ["unknown_customer"] * 2
    assert world.rows("SELECT * FROM payment_methods") == []


@pytest.mark.parametrize("by", ["webhook", "event list"])
def test_a_default_card_that_is_detached_is_gone_and_reloads_stop(world: World, by: str) -> None:
    world.adjust(5_000)
    method = world.save_card()
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=2_000)
    world.read_events()
    world.sandbox.detach(method)
    if by == "webhook":
        world.deliver(*world.events("payment_method.detached"))
    else:
        world.clock.move(seconds=31)
        world.read_events()

    account = world.account()
    assert (account.has_payment_method, account.default_payment_method_id, account.card) == (
        False,
        None,
        None,
    )
    world.adjust(-4_900)
    world.work()
    world.reconcile()
    assert world.charged() == 0
    assert world.attempts() == []

    world.save_card()
    world.work()
    assert world.balance() == 2_100
    world.assert_sound()


def test_another_card_that_is_detached_leaves_the_default(world: World) -> None:
    default = world.save_card()
    other = world.sandbox.save_card(world.account().stripe_customer_id or "")
    world.sandbox.detach(other)
    world.deliver(*world.events("payment_method.detached"))
    assert world.account().default_payment_method_id == default


def test_a_detached_card_does_not_come_back_whatever_order_its_events_come_in(world: World) -> None:
    method = world.save_card()
    world.sandbox.detach(method)
    world.deliver(*world.events("payment_method.detached"), *world.events("setup_intent.succeeded"))
    assert not world.account().has_payment_method
    assert world.rows("SELECT count(*) FROM payment_methods WHERE detached_at IS NULL") == [(0,)]
    with pytest.raises(InvalidPaymentMethodError):
        set_default_payment_method(world.payments, 1, method)


def test_a_card_detached_while_it_is_made_the_default_is_not(world: World) -> None:
    """Stripe is asked whose it is, then it is taken away and the webhook comes, then the default would be written."""
    world.save_card()
    method = world.sandbox.save_card(world.account().stripe_customer_id or "")
    told_stripe = world.payments.stripe.set_default_card

    def detach_meanwhile(customer_id: str, payment_method_id: str) -> None:
        told_stripe(customer_id, payment_method_id)
        world.sandbox.detach(payment_method_id)
        world.deliver(*world.events("payment_method.detached"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StripeApi, "set_default_card", lambda _, *about: detach_meanwhile(*about))
        with pytest.raises(InvalidPaymentMethodError):
            set_default_payment_method(world.payments, 1, method)

    assert world.account().default_payment_method_id != method
