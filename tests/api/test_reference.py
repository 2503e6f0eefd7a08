"""Every request and response of the customers' API reference, replayed: field by field and type by type."""

from datetime import datetime
from typing import Any

import httpx
import pytest

from metering.rules.payments import IntentStatus
from metering.sandbox.stripe.faults import RequestFault
from tests.api.site import Site, assert_problem
from tests.spine.billing import event, prepare, price, push, run_meters
from tests.waiting import wait_until

ACCOUNT = {
    "balance_cents": 125000,
    "balance_usd": "1250.00",
    "currency": "usd",
    "auto_reload_enabled": True,
    "auto_reload_minimum_cents": 1000,
    "auto_reload_amount_cents": 5000,
    "auto_reload_monthly_limit_cents": None,
    "has_payment_method": True,
    "auto_reload_paused": None,
    "held_cents": 0,
    "available_cents": 125000,
}
TOP_UP = {
    "payment_intent_id": "pi_abc123",
    "status": "succeeded",
    "client_secret": "pi_abc123_secret_...",
}
SETUP_INTENT = {"setup_intent_id": "seti_abc123", "client_secret": "seti_abc123_secret_..."}
TRANSACTION: dict[str, Any] = {
    "id": 3421,
    "kind": "debit",
    "description": "Call billing: 2 minutes × $0.08",
    "amount_cents": -16,
    "amount_usd": "-0.16",
    "call_id": 987654321,
    "phone_number_id": 201,
    "phone_number_value": "+15551234567",
    "metadata": {},
    "created_at": "2026-04-20T18:25:06.201Z",
}


def assert_shape(answered: Any, example: dict[str, Any], **otherwise: type) -> None:
    """The example's fields in its order, each of its type, but for those named in `otherwise`."""
    assert list(answered) == list(example)
    for name, value in example.items():
        assert type(answered[name]) is otherwise.get(name, type(value)), (name, answered[name])


def answered(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


@pytest.fixture
def customer(site: Site) -> Site:
    """Org 1 with a card, 1250.00 USD and reloads on, as in the reference."""
    site.world.save_card()
    site.world.adjust(125_000)
    site.world.settings(enabled=True, minimum_cents=1_000, amount_cents=5_000)
    return site


def test_get_billing_account(customer: Site) -> None:
    assert answered(customer.get("/v1/billing"), 200) == ACCOUNT


def test_get_billing_account_of_an_org_that_has_set_nothing(site: Site) -> None:
    account = answered(site.get("/v1/billing"), 200)
    assert account == {
        "balance_cents": 0,
        "balance_usd": "0.00",
        "currency": "usd",
        "auto_reload_enabled": False,
        "auto_reload_minimum_cents": 0,
        "auto_reload_amount_cents": 0,
        "auto_reload_monthly_limit_cents": None,
        "has_payment_method": False,
        "auto_reload_paused": None,
        "held_cents": 0,
        "available_cents": 0,
    }
    assert list(account) == list(ACCOUNT)


def test_a_balance_below_zero(site: Site) -> None:
    site.world.adjust(-5)
    account = answered(site.get("/v1/billing"), 200)
    assert (account["balance_cents"], account["balance_usd"]) == (-5, "-0.05")


def test_update_auto_reload(customer: Site) -> None:
    settings = {
        "auto_reload_enabled": True,
        "auto_reload_minimum_cents": 1000,
        "auto_reload_amount_cents": 5000,
        "auto_reload_monthly_limit_cents": 50000,
    }
    changed = answered(customer.patch(**settings), 200)
    assert_shape(changed, ACCOUNT, auto_reload_monthly_limit_cents=int)
    assert changed == ACCOUNT | settings
    assert answered(customer.get("/v1/billing"), 200) == changed
    assert answered(customer.patch(auto_reload_monthly_limit_cents=None), 200) == ACCOUNT


def test_enabling_auto_reload_needs_a_payment_method(site: Site) -> None:
    settings = {"auto_reload_minimum_cents": 1000, "auto_reload_amount_cents": 5000}
    assert_problem(site.patch(auto_reload_enabled=True, **settings), 422, "payment_method_required")
    assert answered(site.get("/v1/billing"), 200)["auto_reload_minimum_cents"] == 0  # all or none


@pytest.mark.parametrize("missing", ["auto_reload_minimum_cents", "auto_reload_amount_cents"])
def test_enabling_auto_reload_needs_minimum_and_amount_sent_or_set_before(site: Site, missing: str) -> None:
    site.world.save_card()
    settings = {"auto_reload_minimum_cents": 0, "auto_reload_amount_cents": 5000}
    value = settings.pop(missing)
    assert_problem(site.patch(auto_reload_enabled=True, **settings), 400, "invalid_request", missing)
    assert site.patch(**{missing: value}).status_code == 200
    assert site.patch(auto_reload_enabled=True, **settings).json()["auto_reload_enabled"] is True


def test_patch_changes_only_what_is_sent(customer: Site) -> None:
    before = answered(customer.get("/v1/billing"), 200)
    assert answered(customer.patch(), 200) == before
    for name, value in [
        ("auto_reload_minimum_cents", 0),
        ("auto_reload_amount_cents", 50),
        ("auto_reload_monthly_limit_cents", 0),
        ("auto_reload_enabled", False),
    ]:
        before |= {name: value}
        assert answered(customer.patch(**{name: value}), 200) == before


def test_top_up(customer: Site) -> None:
    made = answered(customer.top_up(10_000), 201)
    assert_shape(made, TOP_UP)
    assert made["status"] == "succeeded"
    assert made["payment_intent_id"].startswith("pi_")
    assert made["client_secret"].startswith(made["payment_intent_id"] + "_secret_")
    assert answered(customer.get("/v1/billing"), 200)["balance_cents"] == 135_000


def test_top_up_with_another_payment_method_than_the_default(customer: Site) -> None:
    account = customer.world.account()
    other = customer.world.sandbox.save_card(account.stripe_customer_id or "", card="pm_card_mastercard")
    body = {"amount_cents": 10_000, "payment_method_id": other}
    assert_shape(answered(customer.post("/v1/billing/top-up", json=body), 201), TOP_UP)
    (attempt,) = customer.world.attempts()
    assert attempt.payment_method_id == other


def test_top_up_that_needs_3ds_is_credited_once_the_webhook_came(site: Site) -> None:
    site.world.save_card("pm_card_authenticationRequired")
    made = answered(site.top_up(10_000), 201)
    assert_shape(made, TOP_UP)
    assert made["status"] == IntentStatus.REQUIRES_ACTION
    assert answered(site.get("/v1/billing"), 200)["balance_cents"] == 0
    site.take_webhooks()
    site.world.sandbox.authenticate(made["payment_intent_id"])
    wait_until(lambda: site.balance_cents() == 10_000, limit_s=20)


def test_top_up_errors(site: Site) -> None:
    assert_problem(site.top_up(499), 400, "invalid_amount")
    assert_problem(site.top_up(100_000_000), 400, "invalid_amount")
    assert_problem(site.top_up(500), 422, "payment_method_required")
    method = site.world.save_card()
    site.world.sandbox.fail_card(method, decline_code="insufficient_funds")
    declined = assert_problem(site.top_up(500), 402, "card_declined")
    assert set(declined) == {"detail", "code"}
    assert "insufficient_funds" in declined["detail"]
    site.world.sandbox.fail_card(method, decline_code="authentication_required")
    wanted = assert_problem(site.top_up(501), 402, "authentication_required")
    assert set(wanted) == {"detail", "code", "next_action", "client_secret"}
    assert wanted["next_action"] == "confirm_payment"
    assert wanted["client_secret"].startswith("pi_")
    site.world.sandbox.mend_card(method)
    site.world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.create", count=None)
    unavailable = assert_problem(site.top_up(502), 502, "provider_unavailable")
    assert set(unavailable) == {"detail", "code"}
    site.world.sandbox.clear_faults()
    assert answered(site.top_up(502), 201)["status"] == "succeeded"
    assert answered(site.get("/v1/billing"), 200)["balance_cents"] == 502


def test_setup_intent_and_default_payment_method(site: Site) -> None:
    made = answered(site.post("/v1/billing/setup-intent"), 200)
    assert_shape(made, SETUP_INTENT)
    assert made["client_secret"].startswith(made["setup_intent_id"] + "_secret_")
    method = site.world.sandbox.confirm_setup(made["setup_intent_id"])
    assert answered(site.get("/v1/billing"), 200)["has_payment_method"] is False
    account = answered(
        site.post("/v1/billing/default-payment-method", json={"payment_method_id": method}), 200
    )
    assert_shape(account, ACCOUNT)
    assert account["has_payment_method"] is True
    assert answered(site.get("/v1/billing"), 200) == account


def test_list_transactions(site: Site) -> None:
    prepare(site.world.engine, org_ids=[], prices=[price("bolt", "0.08")])
    site.world.clock.at = datetime.fromisoformat(TRANSACTION["created_at"])
    push(site.world.client, [event(org_id=1, call_id=987654321)])
    run_meters(site.world.engine, site.world.client, clock=site.world.clock)
    page = answered(site.get("/v1/billing/transactions?limit=50"), 200)
    assert list(page) == ["results", "total", "limit", "offset"]
    assert (page["total"], page["limit"], page["offset"]) == (1, 50, 0)
    (transaction,) = page["results"]
    # Ours come after the reference's own (docs/reference/http-api.md).
    own = {name: transaction.pop(name) for name in list(transaction)[len(TRANSACTION) :]}
    assert list(own) == ["call_id_str", "tier", "direction", "duration_seconds", "ended_at"]
    assert own["call_id_str"] == "987654321"
    assert_shape(transaction, TRANSACTION)
    assert transaction == TRANSACTION | {"id": transaction["id"]}
