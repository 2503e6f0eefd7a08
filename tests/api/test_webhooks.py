"""Webhooks over HTTP: Stripe's own alone, once, and again where they couldn't be seen to."""

import hashlib
import hmac
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from db.attempts.attempts import Attempt
from metering.api import webhooks
from metering.payments.errors import ProviderUnavailableError
from metering.payments.stripe_api import StripeApi
from metering.rules.payments import Intent
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from tests.api.site import Site, assert_problem
from tests.waiting import wait_until


def signature(site: Site, body: bytes, *, secret: str = WEBHOOK_SECRET, age_s: int = 0) -> str:
    at = int(site.world.clock().timestamp()) - age_s
    signed = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={signed}"


def send(site: Site, body: bytes, **how: Any) -> httpx.Response:
    headers = {"Stripe-Signature": signature(site, body, **how), "Content-Type": "application/json"}
    return site.http.post("/v1/stripe/webhook", content=body, headers=headers)


def event(site: Site, kind: str = "customer.created", **fields: Any) -> bytes:
    created = int(site.world.clock().timestamp())
    usual = {
        "id": "evt_1",
        "object": "event",
        "type": kind,
        "created": created,
        "livemode": False,
        "data": {"object": {}},
    }
    return json.dumps(usual | fields).encode()


def test_an_event_that_is_not_ours_is_received_and_that_is_all(site: Site) -> None:
    for _ in range(2):
        response = send(site, event(site))
        assert (response.status_code, response.json()) == (200, {"received": True})


def test_nobody_but_stripe_is_believed(site: Site) -> None:
    body = event(site)
    for headers in [
        {},
        {"Stripe-Signature": ""},
        {"Stripe-Signature": "t=1,v1=00"},
        {"Stripe-Signature": signature(site, body, secret="whsec_other")},  # noqa: S106
        {"Stripe-Signature": signature(site, body, age_s=301)},
        {"Stripe-Signature": signature(site, body, age_s=-301)},
        {"Stripe-Signature": signature(site, body + b" ")},
        {"Authorization": f"Bearer {site.key(1)}"},
    ]:
        response = site.http.post("/v1/stripe/webhook", content=body, headers=headers)
        assert set(assert_problem(response, 400, "invalid_signature")) == {"detail", "code"}
        assert WEBHOOK_SECRET not in response.text


def test_what_cannot_be_seen_to_now_is_to_be_sent_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> str:
        raise ProviderUnavailableError("away")

    monkeypatch.setattr(webhooks, "receive", unavailable)
    response = send(site, event(site))
    assert_problem(response, 503, "unavailable")
    assert "away" not in response.text


def test_two_hundred_duplicates_that_race_the_answer_are_one_credit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world.save_card()
    site.key(1)
    charged, racing = threading.Event(), threading.Event()
    charge = StripeApi.charge

    def charge_and_race(api: StripeApi, attempt: Attempt, **options: Any) -> Intent:
        intent = charge(api, attempt, **options)
        charged.set()
        assert racing.wait(30)
        return intent

    monkeypatch.setattr(StripeApi, "charge", charge_and_race)
    with ThreadPoolExecutor(21) as threads:
        answer = threads.submit(site.top_up, 5_000)
        assert charged.wait(30)
        (succeeded,) = site.world.events("payment_intent.succeeded")
        body = json.dumps(succeeded).encode()

        def shoot(number: int) -> int:
            if number == 20:
                racing.set()
            return send(site, body).status_code

        statuses = list(threads.map(shoot, range(200)))
        assert answer.result().json()["status"] == "succeeded"
    assert statuses == [200] * 200
    assert site.balance_cents() == 5_000
    assert site.get("/v1/billing/transactions").json()["total"] == 1
    site.world.assert_sound()


def test_a_detached_card_is_no_longer_there(site: Site) -> None:
    method = site.world.save_card()
    site.take_webhooks()
    site.world.sandbox.detach(method)
    wait_until(lambda: site.get("/v1/billing").json()["has_payment_method"] is False, limit_s=30)
    assert_problem(site.top_up(500), 422, "payment_method_required")
    with site.world.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM stripe_events")).scalar_one() >= 1
