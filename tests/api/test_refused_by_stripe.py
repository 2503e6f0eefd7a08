"""What clients are told where Stripe has decided, and said no: never that it is safe to repeat."""

from typing import Any

import pytest

from metering.payments.stripe_api import StripeApi
from metering.payments.stripe_failures import StripeRefused
from tests.api.site import Site, assert_problem


@pytest.mark.parametrize("how", ["deleted", "another account"])
def test_an_org_whose_customer_is_gone_saves_a_card_and_goes_on(site: Site, how: str) -> None:
    site.world.save_card()
    before = site.world.account().stripe_customer_id
    if how == "deleted":
        site.world.stripe.v1.customers.delete(before or "")
    else:
        site.world.sandbox.reset()
    assert site.get("/v1/billing").json()["has_payment_method"]
    assert_problem(site.top_up(2_000, key="k"), 422, "payment_method_required")
    assert not site.get("/v1/billing").json()["has_payment_method"]
    setup = site.post("/v1/billing/setup-intent")
    assert setup.status_code == 200, setup.text
    method = site.world.sandbox.confirm_setup(setup.json()["setup_intent_id"])
    chosen = site.post("/v1/billing/default-payment-method", json={"payment_method_id": method})
    assert chosen.json()["has_payment_method"]
    assert site.top_up(2_000, key="k").json()["status"] == "succeeded"
    assert site.balance_cents() == 2_000
    site.world.assert_sound()


def test_what_stripe_refuses_is_no_502(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.world.save_card()

    def refuse(*_: Any, **__: Any) -> Any:
        raise StripeRefused("parameter_unknown", "Received unknown parameter: no_secret_of_ours")

    with monkeypatch.context() as patched:
        for name in ("charge", "create_setup_intent", "set_default_card"):
            patched.setattr(StripeApi, name, refuse)
        method = {"payment_method_id": site.world.account().default_payment_method_id}
        for response in (
            site.top_up(2_000, key="k"),
            site.post("/v1/billing/setup-intent"),
            site.post("/v1/billing/default-payment-method", json=method),
        ):
            problem = assert_problem(response, 500, "provider_refused")
            assert set(problem) == {"detail", "code"}
            assert "safe to repeat" not in problem["detail"]
            assert "no_secret_of_ours" not in response.text
    assert site.get("/v1/billing").json()["has_payment_method"]
    assert site.top_up(2_000, key="k").status_code == 201
    assert site.balance_cents() == 2_000
