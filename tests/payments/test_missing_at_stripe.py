"""What Stripe no longer has: a customer who was deleted there, or all of it, with another account's key; a payment method."""

import threading
from typing import Any

import pytest
import stripe
from structlog.testing import capture_logs

from metering.payments.cards import create_setup_intent, ensure_customer, set_default_payment_method
from metering.payments.errors import (
    InvalidPaymentMethodError,
    PaymentMethodRequiredError,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from metering.payments.metrics import MISSING_AT_STRIPE
from metering.payments.stripe_api import StripeApi
from metering.payments.stripe_failures import StripeRefused
from metering.rules.payments import AttemptStatus
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.crashing import crashing_at
from tests.payments.world import World


def missing(kind: str) -> float:
    return float(MISSING_AT_STRIPE.labels(kind)._value.get())


@pytest.fixture(params=["deleted", "another account"])
def lost(request: pytest.FixtureRequest, world: World) -> tuple[World, str]:
    """An org with a saved card, whose customer Stripe has no more; the customer's id."""
    world.save_card()
    customer = world.account().stripe_customer_id
    assert customer is not None
    if request.param == "deleted":
        world.stripe.v1.customers.delete(customer)
    else:
        world.change_account()
    return world, customer


def assert_replaced(world: World, before: str) -> str:
    account = world.account()
    assert account.stripe_customer_id not in {None, before}
    assert not account.has_payment_method
    (at_stripe,) = world.stripe.v1.customers.list({}).data
    assert at_stripe.id == account.stripe_customer_id
    return at_stripe.id


def test_saving_a_card_makes_a_new_customer_and_drops_the_old_cards(lost: tuple[World, str]) -> None:
    world, before = lost
    counted = missing("customer")
    with capture_logs() as logs:
        made = create_setup_intent(world.payments, 1)
    customer = assert_replaced(world, before)
    assert missing("customer") == counted + 1
    (said,) = [each for each in logs if each.get("missing_customer") == before]
    assert (said["org_id"], said["customer"], said["log_level"]) == (1, customer, "warning")
    method = world.sandbox.confirm_setup(made.setup_intent_id)
    assert set_default_payment_method(world.payments, 1, method).has_payment_method
    world.top_up()
    assert world.balance() == world.held_cents() == 2_000
    world.assert_sound()


def test_a_top_up_says_that_there_is_no_card(lost: tuple[World, str]) -> None:
    world, before = lost
    counted = missing("customer")
    with pytest.raises(PaymentMethodRequiredError):
        world.top_up(key="a")
    customer = assert_replaced(world, before)
    with pytest.raises(PaymentMethodRequiredError):
        world.top_up(key="a")
    assert missing("customer") == counted + 1
    assert [(each.status, each.failure_code) for each in world.attempts()] == [
        (AttemptStatus.FAILED, "customer_missing")
    ]
    world.save_card()
    assert world.account().stripe_customer_id == customer
    world.top_up(key="a")
    assert world.balance() == 2_000
    world.assert_sound()


def test_a_reload_fails_pauses_and_drops_the_cards_until_one_is_saved(world: World) -> None:
    world.save_card()
    before = world.account().stripe_customer_id
    assert before is not None
    world.stripe.v1.customers.delete(before)
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.work()
    assert_replaced(world, before)
    (attempt,) = world.attempts()
    assert (attempt.status, attempt.failure_code) == (AttemptStatus.FAILED, "customer_missing")
    ((code, lifts),) = world.rows("SELECT pause_code, pause_lifts_with FROM reload_states")
    assert (code, lifts) == ("customer_missing", "change")
    world.clock.move(days=2)
    world.reconcile()
    assert len(world.attempts()) == 1

    world.save_card()  # the very same card, saved with the new customer
    world.work()
    assert world.rows("SELECT pause_code FROM reload_states") == [(None,)]
    assert world.balance() == world.held_cents() == 5_000
    world.assert_sound()


def test_all_who_find_it_out_at_once_get_the_same_customer(lost: tuple[World, str]) -> None:
    world, before = lost
    world.sandbox.set_latency(0.05)
    together, errors = threading.Barrier(4), []

    def save() -> None:
        together.wait(10)
        for _ in range(50):
            try:
                create_setup_intent(world.payments, 1)
            except ProviderUnavailableError:  # another one's key is in use: to be repeated
                continue
            except Exception as error:  # noqa: BLE001
                errors.append(error)
            return
        errors.append(TimeoutError())

    counted = missing("customer")
    threads = [threading.Thread(target=save) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    world.sandbox.set_latency(0)
    assert errors == []
    assert_replaced(world, before)
    assert missing("customer") == counted + 1


def test_a_crash_between_making_and_keeping_makes_no_second_one(lost: tuple[World, str]) -> None:
    world, before = lost
    with crashing_at(CrashPoint.CUSTOMER_AFTER_CREATE):
        create_setup_intent(world.payments, 1)
    assert world.account().stripe_customer_id == before
    create_setup_intent(world.payments, 1)
    again = assert_replaced(world, before)
    world.stripe.v1.customers.delete(again)  # and the new one can be lost, too
    create_setup_intent(world.payments, 1)
    assert_replaced(world, again)


def test_what_was_paid_as_the_old_customer_is_credited_and_taken_back(world: World) -> None:
    """Payments and refunds outlive a customer."""
    method = world.save_card()
    world.top_up()
    world.sandbox.slow_card(method)
    late = world.top_up(3_000).outcome
    before = world.account().stripe_customer_id
    world.stripe.v1.customers.delete(before or "")
    create_setup_intent(world.payments, 1)
    assert world.account().stripe_customer_id != before
    first = world.intents()[0]["id"]
    world.sandbox.refund(first, amount_cents=500)
    world.sandbox.finish_processing(late.payment_intent_id)  # type: ignore[union-attr]
    world.clock.move(minutes=1)
    world.read_events()
    assert world.balance() == 2_000 + 3_000 - 500
    world.assert_sound()


def test_a_charge_whose_answer_was_lost_is_found_though_its_customer_is_deleted(world: World) -> None:
    world.save_card()
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=2)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=2)
    with pytest.raises(ProviderUnavailableError):
        world.top_up()
    world.stripe.v1.customers.delete(world.account().stripe_customer_id or "")
    world.clock.move(minutes=5)
    world.process_due_attempts()
    assert [each.status for each in world.attempts()] == [AttemptStatus.SUCCEEDED]
    assert world.balance() == 2_000


def test_another_accounts_key_decides_nothing_of_what_may_have_been_charged(world: World) -> None:
    """Never that it wasn't: what can't be looked at is not absent."""
    world.save_card()
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=2)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=2)
    with pytest.raises(ProviderUnavailableError):
        world.top_up()
    world.change_account()
    world.clock.move(hours=30)
    world.process_due_attempts()
    assert [each.status for each in world.attempts()] == [AttemptStatus.OPEN]


def test_a_payment_method_that_is_missing_is_dropped_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = world.save_card("pm_card_mastercard")
    method = world.save_card()
    customer = world.account().stripe_customer_id
    counted = missing("payment_method")
    refuse(world, monkeypatch, "resource_missing", "payment_method")
    with pytest.raises(PaymentMethodRequiredError):
        world.top_up()
    monkeypatch.undo()
    assert (world.account().stripe_customer_id, world.account().has_payment_method) == (customer, False)
    assert missing("payment_method") == counted + 1
    gone = world.rows("SELECT payment_method_id FROM payment_methods WHERE detached_at IS NOT NULL")
    assert gone == [(method,)]
    set_default_payment_method(world.payments, 1, other)
    with pytest.raises(InvalidPaymentMethodError):
        world.top_up(method="pm_none")
    world.top_up()
    assert world.balance() == 2_000


def refuse(world: World, monkeypatch: pytest.MonkeyPatch, code: str, param: str) -> None:
    """Let Stripe refuse every charge with this code and parameter, as its SDK tells it."""
    service = type(world.stripe.v1.payment_intents)

    def create(*_: Any, **__: Any) -> Any:
        said = {"type": "invalid_request_error", "code": code, "param": param, "message": "No."}
        error: Any = stripe.InvalidRequestError
        raise error(
            "No.", param, code, json_body={"error": said}, http_status=400, headers={"request-id": "req_1"}
        )

    monkeypatch.setattr(service, "create", create)


def test_any_other_refusal_is_logged_and_is_not_safe_to_repeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = world.save_card()
    refuse(world, monkeypatch, "parameter_unknown", "return_url")
    with capture_logs() as logs, pytest.raises(ProviderRefusedError, match="no use"):
        world.top_up(key="a")
    (said,) = [each for each in logs if each["event"] == "Stripe refused a request"]
    expected = {
        "operation": "payment_intents.create",
        "outcome": "refused",
        "status": 400,
        "type": "invalid_request_error",
        "code": "parameter_unknown",
        "param": "return_url",
        "stripe_request_id": "req_1",
        "log_level": "warning",
    }
    assert said.items() >= expected.items()
    assert world.account().default_payment_method_id == method
    monkeypatch.undo()
    world.top_up(key="a")  # once it is mended the same request is a new attempt
    assert world.balance() == 2_000


@pytest.mark.parametrize(
    ("operation", "ask"),
    [
        ("customers.retrieve", lambda api: api.is_deleted("cus_none")),
        ("customers.update", lambda api: api.set_default_card("cus_none", "pm_none")),
        ("payment_intents.retrieve", lambda api: api.retrieve_intent("pi_none")),
        ("payment_intents.cancel", lambda api: api.cancel_intent("pi_none")),
        ("payment_methods.retrieve", lambda api: api.retrieve_card("pm_none")),
        ("setup_intents.create", lambda api: api.create_setup_intent("cus_none")),
    ],
)
def test_every_refused_request_is_logged_with_its_id(world: World, operation: str, ask: Any) -> None:
    api = world.payments.stripe
    real: StripeApi = getattr(api, "_api", api)
    with capture_logs() as logs, pytest.raises(StripeRefused):
        ask(real)
    said = next(each for each in logs if each["event"] == "Stripe refused a request")
    assert (said["operation"], said["code"]) == (operation, "resource_missing")
    assert said["stripe_request_id"].startswith("req_")
    assert said["param"]


def test_a_wrong_key_is_logged_without_a_part_of_it(world: World) -> None:
    world.sandbox.set_fault(RequestFault.UNAUTHORIZED, operation="customers.create")
    with capture_logs() as logs, pytest.raises(Exception, match=r"."):
        ensure_customer(world.payments, 1)
    (said,) = [each for each in logs if each["event"] == "Stripe refused a request"]
    assert (said["status"], said["outcome"]) == (401, "undecided")
    assert "sk_" not in said["message"]
