"""What Stripe refuses, or doesn't decide, because of our account or our key: what is told, what is logged, and that it passes.

Stripe's answers are put in below the SDK, as they come over the wire.
"""

import json
from typing import Any

import pytest
import structlog.testing

from metering.payments import stripe_requests
from metering.payments.cards import create_setup_intent
from metering.payments.errors import (
    PaymentError,
    ProviderMisconfiguredError,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from metering.payments.stripe_failures import without_keys
from metering.rules.payments import AttemptStatus
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.world import World

INVALID = "invalid_request_error"
ACCOUNT = {"type": INVALID, "code": "account_invalid", "message": "Your account cannot make charges."}
PARTS = ["rk_live_***********j2Hb6y", "sk_test_4eC3****q7dc", "sk_live_51Hx…9Zk", "whsec_abc123"]


class Answers:
    """What Stripe answers to each PaymentIntent and SetupIntent that is to be made, while it is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.status, self.error = 0, dict[str, Any]()
        real = stripe_requests.HttpClient.request

        def request(http: Any, method: str, url: str, *asked: Any, **more: Any) -> Any:
            making = method.upper() == "POST" and url.endswith(("/payment_intents", "/setup_intents"))
            if not (self.status and making):
                return real(http, method, url, *asked, **more)
            headers = {"request-id": "req_test", "stripe-should-retry": "false"}
            return json.dumps({"error": self.error}), self.status, headers

        patch.setattr(stripe_requests.HttpClient, "request", request)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def test_reloads_come_back_by_themselves_when_the_account_is_mended(world: World, answers: Answers) -> None:
    world.make_org(2)
    for org_id in (1, 2):
        world.save_card(org_id=org_id)
    answers.status, answers.error = 400, ACCOUNT
    for org_id in (1, 2):
        world.settings(org_id=org_id, enabled=True, minimum_cents=1_000, amount_cents=5_000)
    world.work()
    for hours in (1, 24):  # each time one more charge is refused
        world.clock.move(hours=hours)
        world.reconcile()
    assert [each.status for each in world.attempts()] == [AttemptStatus.FAILED] * 3
    answers.status = 0
    world.clock.move(hours=25)

    world.reconcile()

    assert (world.balance(1), world.balance(2)) == (5_000, 5_000)
    assert world.rows("SELECT FROM reload_states WHERE pause_code IS NOT NULL") == []


def test_a_charge_that_was_made_is_never_told_as_not_charged(world: World) -> None:
    """Its answer was lost, and then the key became another account's."""
    world.save_card()
    world.sandbox.set_fault(RequestFault.DROP_AFTER, operation="payment_intents.create", count=2)
    world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=4)
    with pytest.raises(ProviderUnavailableError):
        world.top_up(key="k")
    world.sandbox.clear_faults()
    world.clock.move(minutes=2)
    world.sandbox.reset()

    with pytest.raises(ProviderUnavailableError, match="isn't known") as told:
        world.top_up(key="k")

    assert "charges nothing for it" not in str(told.value)
    assert [each.status for each in world.attempts()] == [AttemptStatus.OPEN]


UNDECIDED = [
    (401, {"type": INVALID, "message": "Invalid API Key provided: {key}"}, ProviderMisconfiguredError),
    (403, {"type": INVALID, "message": "The provided key '{key}' has no access"}, ProviderMisconfiguredError),
    (400, {"type": "idempotency_error", "message": "Keys ... {key}"}, ProviderMisconfiguredError),
    (409, {"type": INVALID, "code": "lock_timeout", "message": "{key}"}, ProviderUnavailableError),
    (429, {"type": INVALID, "code": "rate_limit", "message": "{key}"}, ProviderUnavailableError),
    (400, {"type": INVALID, "code": "parameter_unknown", "message": "{key}"}, ProviderRefusedError),
    (404, {"type": INVALID, "message": "Unrecognized request URL ({key})"}, ProviderRefusedError),
]


@pytest.mark.parametrize(("status", "error", "expected"), UNDECIDED)
@pytest.mark.parametrize("key", PARTS)
def test_what_is_told_is_true_and_no_part_of_a_key_is_logged(
    world: World,
    answers: Answers,
    status: int,
    error: dict[str, str],
    expected: type[PaymentError],
    key: str,
) -> None:
    world.save_card()
    answers.status = status
    answers.error = error | {"message": error["message"].format(key=key)}
    with structlog.testing.capture_logs() as logs:
        for ask in (lambda: world.top_up(key="k"), lambda: create_setup_intent(world.payments, 1)):
            with pytest.raises(expected) as told:
                ask()
            assert type(told.value) is expected
            assert ("safe to repeat" in str(told.value)) == (status in {409, 429})
            assert key not in str(told.value)
    said = [each for each in logs if each["event"] == "Stripe refused a request"]
    assert {each["status"] for each in said} == {status}
    assert {each["stripe_request_id"] for each in said} == {"req_test"}
    assert key not in repr(logs)
    assert all("[key]" in each["message"] for each in said)
    (attempt,) = world.attempts()
    assert attempt.open == (expected is not ProviderRefusedError)
    assert key not in (attempt.failure_message or "")
    answers.status = 0  # mended: the same request is charged, once
    world.clock.move(minutes=2)
    world.top_up(key="k")
    assert (world.balance(), world.charged()) == (2_000, 1)


@pytest.mark.parametrize("key", PARTS)
def test_keys_are_blanked_and_nothing_else(key: str) -> None:
    assert (
        without_keys(f"The key '{key}' of acct_1, pm_card_visa.")
        == "The key '[key]' of acct_1, pm_card_visa."
    )
