"""The controls from another process, over HTTP."""

import urllib.request

import pytest
import stripe

from metering.sandbox.stripe.remote import CONTROLS, ControlError, control
from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.sandbox.stripe.shop import Shop


def test_a_customer_saves_a_card_and_meets_a_challenge(shop: Shop, sandbox: StripeSandbox) -> None:
    made = shop.client.v1.setup_intents.create({"customer": shop.customer})
    card = "pm_card_authenticationRequired"
    method = control(sandbox.url, "confirm_setup", setup_intent=made.id, card=card)
    assert shop.client.v1.setup_intents.retrieve(made.id).payment_method == method
    intent = shop.pay(payment_method=method)
    assert control(sandbox.url, "authenticate", payment_intent=intent.id)["status"] == "succeeded"
    assert shop.retrieve(intent.id).status == "succeeded"


def test_a_card_that_can_not_be_saved_is_told(shop: Shop, sandbox: StripeSandbox) -> None:
    made = shop.client.v1.setup_intents.create({"customer": shop.customer})
    with pytest.raises(ControlError, match="insufficient funds"):
        control(
            sandbox.url,
            "confirm_setup",
            setup_intent=made.id,
            card="pm_card_visa_chargeDeclinedInsufficientFunds",
        )
    assert shop.client.v1.setup_intents.retrieve(made.id).status == "requires_payment_method"
    assert shop.events()[-1] == "setup_intent.setup_failed"


def test_a_failed_challenge_saves_nothing(shop: Shop, sandbox: StripeSandbox) -> None:
    made = shop.client.v1.setup_intents.create({"customer": shop.customer})
    with pytest.raises(ControlError, match="authenticate"):
        control(
            sandbox.url,
            "confirm_setup",
            setup_intent=made.id,
            card="pm_card_authenticationRequired",
            authenticates=False,
        )
    found = shop.client.v1.setup_intents.retrieve(made.id)
    assert found.last_setup_error is not None
    assert found.last_setup_error.code == "setup_intent_authentication_failure"


def test_faults_holdings_and_totals(shop: Shop, sandbox: StripeSandbox) -> None:
    control(sandbox.url, "set_fault", kind="drop_after", operation="payment_intents.create")
    with pytest.raises(stripe.APIConnectionError):
        shop.pay()
    with urllib.request.urlopen(f"{sandbox.url}/_sandbox/holdings") as answer:  # noqa: S310
        assert answer.headers["Stripe-Sandbox"] == "not-stripe"
    held = control(sandbox.url, "holdings")
    assert held[shop.customer]["net_cents"] == 2_000
    totals = control(sandbox.url, "totals")
    assert (totals["charges"], totals["faults_met"]) == (1, {"drop_after": 1})
    assert control(sandbox.url, "requests", operation="payment_intents.*")[0]["params"]["amount"] == "2000"


def test_refunds_disputes_and_detaching(shop: Shop, sandbox: StripeSandbox) -> None:
    paid = shop.pay()
    refund = control(sandbox.url, "refund", payment_intent=paid.id, amount_cents=300)
    control(sandbox.url, "fail_refund", refund=refund["id"])
    dispute = control(sandbox.url, "open_dispute", payment_intent=paid.id)
    control(sandbox.url, "win_dispute", dispute=dispute["id"])
    assert shop.net() == 2_000
    assert control(sandbox.url, "detach", payment_method=shop.method)["customer"] is None


def test_chaos_and_keys(shop: Shop, sandbox: StripeSandbox) -> None:
    control(sandbox.url, "set_chaos", seed=1, requests={"forbidden": 1.0})
    with pytest.raises(stripe.PermissionError):
        shop.pay()
    control(sandbox.url, "clear_faults")
    assert control(sandbox.url, "rotate_api_key") == sandbox.api_key
    with pytest.raises(stripe.AuthenticationError):
        shop.pay()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nothing", {}),
        ("authenticate", {}),
        ("authenticate", {"payment_intent": 7}),
        ("authenticate", {"payment_intent": "pi_none"}),
        ("set_fault", {"kind": "no such"}),
        ("set_webhook", {"url": "nowhere", "secrets": ["s"]}),
        ("totals", {"unknown": True}),
    ],
)
def test_what_can_not_be_done_is_told(
    sandbox: StripeSandbox, name: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(ControlError):
        control(sandbox.url, name, **arguments)


def test_a_reset_forgets_everything(shop: Shop, sandbox: StripeSandbox) -> None:
    shop.pay(key="k")
    control(sandbox.url, "set_fault", kind="forbidden", count=None)
    control(sandbox.url, "reset")
    again = Shop(sandbox, shop.client)
    assert again.customer != shop.customer
    assert again.pay(key="k").status == "succeeded"
    assert sandbox.totals().charges == 1
    assert list(sandbox.holdings()) == [again.customer]


def test_every_control_has_arguments_that_can_be_read(sandbox: StripeSandbox) -> None:
    for name in CONTROLS:
        with pytest.raises(ControlError, match=r"unknown field|missing required field"):
            control(sandbox.url, name, no_such_argument=1)
