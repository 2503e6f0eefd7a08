"""Who asks is known by the key alone; one org never sees, pays for or changes another's anything."""

from typing import Any

import pytest

from db.accounts.api_keys import revoke_key
from db.postgres.engine import transaction
from tests.api.site import TELEPHONY_TOKEN, Site, assert_problem

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/billing", {}),
    ("PATCH", "/v1/billing", {"json": {"auto_reload_minimum_cents": 1}}),
    ("POST", "/v1/billing/top-up", {"json": {"amount_cents": 10_000}}),
    ("POST", "/v1/billing/setup-intent", {}),
    ("POST", "/v1/billing/default-payment-method", {"json": {"payment_method_id": "pm_abc123"}}),
    ("GET", "/v1/billing/transactions", {}),
    ("GET", "/v1/gate/1", {}),
]


@pytest.mark.parametrize(("method", "path", "request_"), REQUESTS)
def test_without_a_key_that_counts_nothing_is_told(site: Site, method: str, path: str, request_: Any) -> None:
    key = site.key(1)
    for authorization in [
        None,
        "",
        "Bearer",
        f"Basic {key}",
        key,
        f"Bearer {key[:-1]}",
        f"Bearer {key}x",
        f"Bearer {key.upper()}",
        f"Bearer {key.removeprefix('sk_live_')}",
        f"Bearer sk_test_{key.removeprefix('sk_live_')}",
        "Bearer sk_live_",
        "Bearer sk_live_" + "x" * 10_000,
        b"Bearer sk_live_\xff\xfe",
    ]:
        headers: Any = {} if authorization is None else {"Authorization": authorization}
        response = site.http.request(method, path, headers=headers, **request_)
        assert set(assert_problem(response, 401, "unauthenticated")) == {"detail", "code"}
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert key not in response.text


@pytest.mark.parametrize(("method", "path", "request_"), REQUESTS)
def test_a_revoked_key_stops_at_once(site: Site, method: str, path: str, request_: Any) -> None:
    site.world.adjust(1)
    assert site.ask(method, path, **request_).status_code != 401
    with transaction(site.world.engine) as connection:
        key_id = connection.exec_driver_sql("SELECT id FROM api_keys").scalar_one()
        revoke_key(connection, key_id, site.world.clock())
    for _ in range(2):
        assert_problem(site.ask(method, path, **request_), 401, "unauthenticated")


def test_the_scheme_s_case_does_not_matter(site: Site) -> None:
    for scheme in ("bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {site.key(1)}"}
        assert site.http.get("/v1/billing", headers=headers).status_code == 200


def test_two_keys_of_an_org_are_the_same_org(site: Site) -> None:
    first = site.key(1)
    site.keys.clear()
    assert site.key(1) != first
    site.world.adjust(77)
    for key in (first, site.key(1)):
        response = site.http.get("/v1/billing", headers={"Authorization": f"Bearer {key}"})
        assert response.json()["balance_cents"] == 77


@pytest.mark.parametrize(("method", "path", "request_"), REQUESTS[:-1])
def test_the_telephony_token_opens_nothing_but_gates(
    site: Site, method: str, path: str, request_: Any
) -> None:
    headers = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
    assert_problem(site.http.request(method, path, headers=headers, **request_), 401, "unauthenticated")


def test_one_org_neither_sees_nor_changes_another_s(site: Site) -> None:
    site.world.make_org(2)
    mine, theirs = site.world.save_card(org_id=1), site.world.save_card(org_id=2)
    site.world.settings(org_id=2, minimum_cents=200, amount_cents=2_000)
    their_account = site.get("/v1/billing", org_id=2).json()

    assert site.top_up(5_000).status_code == 201
    assert site.patch(auto_reload_minimum_cents=7, auto_reload_amount_cents=700).status_code == 200
    assert site.get("/v1/billing", org_id=2).json() == their_account
    assert site.get("/v1/billing/transactions", org_id=2).json()["total"] == 0
    assert site.get("/v1/billing/transactions").json()["total"] == 1

    body = {"amount_cents": 5_000, "payment_method_id": theirs}
    assert_problem(site.post("/v1/billing/top-up", json=body), 400, "invalid_payment_method")
    body = {"payment_method_id": theirs}
    assert_problem(site.post("/v1/billing/default-payment-method", json=body), 400, "invalid_payment_method")
    assert site.world.account(1).default_payment_method_id == mine
    assert site.world.account(2).default_payment_method_id == theirs
    assert [attempt.payment_method_id for attempt in site.world.attempts(1)] == [mine]
    assert site.world.attempts(2) == []
    assert_problem(site.get("/v1/gate/2"), 404, "not_found")
    assert_problem(site.get("/v1/gate/3"), 404, "not_found")  # the same as of one that isn't there
    assert site.get("/v1/gate/2").json() == site.get("/v1/gate/3").json()
    site.world.assert_sound()


def test_a_payment_method_of_nobody_is_refused(site: Site) -> None:
    site.world.save_card()
    for method in ("pm_abc123", "pm_card_visa", "cus_x", "x"):
        body: dict[str, Any] = {"payment_method_id": method}
        response = site.post("/v1/billing/default-payment-method", json=body)
        assert_problem(response, 400, "invalid_payment_method")
        response = site.post("/v1/billing/top-up", json={"amount_cents": 5_000, **body})
        assert_problem(response, 400, "invalid_payment_method")
    assert site.world.attempts() == []


def test_idempotency_keys_of_two_orgs_are_two(site: Site) -> None:
    site.world.make_org(2)
    for org_id in (1, 2):
        site.world.save_card(org_id=org_id)
    first, second = (site.top_up(5_000, key="same", org_id=org_id) for org_id in (1, 2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["payment_intent_id"] != second.json()["payment_intent_id"]
    assert (site.world.balance(1), site.world.balance(2)) == (5_000, 5_000)
