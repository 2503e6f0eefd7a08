"""`metering api`."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from metering.sandbox.stripe.sandbox import StripeSandbox
from tests.cli.conftest import Cli
from tests.cli.test_roles import end
from tests.conftest import Database
from tests.stripe_away import NO_STRIPE

TOKEN = {"METERING_TELEPHONY_TOKEN": "telephony"}


@contextmanager
def running(cli: Cli) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    """The API as a process, once it is served, with the line of its log that says so."""
    process = cli.start("api", "--stop-with-stdin")
    try:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        yield process, next(line for line in lines if line["event"] == "the API is served")
    finally:
        process.kill()
        process.communicate()


def api(database: Database, redis_url: str, **settings: str) -> Cli:
    servers = {"METERING_DATABASE_URL": database.url, "METERING_REDIS_URL": redis_url}
    return Cli({**servers, "METERING_HTTP_PORT": "0", **NO_STRIPE, **TOKEN, **settings})


def test_with_a_test_key_customers_come_back_to_a_page_of_its_own(database: Database, redis_url: str) -> None:
    """And with the address that is set, to that: through the whole of the role, as Stripe is told."""
    for settings, expected in (
        ({}, "{url}/payment-return"),
        ({"METERING_RETURN_URL": "app://paid"}, "app://paid"),
    ):
        org_id = "42" if not settings else "43"
        with StripeSandbox() as stripe:
            cli = api(
                database, redis_url, STRIPE_API_KEY=stripe.api_key, STRIPE_API_BASE=stripe.url, **settings
            )
            cli.run("org", "create", "Acme", "--id", org_id)
            key = cli.json("key", "create", org_id)["api_key"]
            headers = {"Authorization": f"Bearer {key}"}
            with running(cli) as (_, served), httpx.Client(base_url=served["url"], headers=headers) as http:
                setup = http.post("/v1/billing/setup-intent").json()["setup_intent_id"]
                method = stripe.confirm_setup(setup)
                http.post("/v1/billing/default-payment-method", json={"payment_method_id": method})
                paid = http.post("/v1/billing/top-up", json={"amount_cents": 1_000})
                assert (paid.status_code, paid.json()["status"]) == (201, "succeeded")
                (asked,) = stripe.requests("payment_intents.create")
                assert asked.params["return_url"] == expected.format(url=served["url"])
                page = http.get("/payment-return?payment_intent=pi_1&payment_intent_client_secret=secret")
                assert (page.status_code, page.headers["referrer-policy"]) == (200, "no-referrer")
                assert "You may close this window" in page.text
                assert "secret" not in page.text


def test_it_serves_until_it_is_told_to_stop_and_says_where(database: Database, redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        metrics_port = probe.getsockname()[1]
    cli = api(database, redis_url, METERING_METRICS_PORT=str(metrics_port))
    cli.run("org", "create", "Acme", "--id", "42")
    key = cli.json("key", "create", "42")["api_key"]
    cli.run("adjust", "42", "--cents", "7", "--reason", "test", "--key", "1")
    with running(cli) as (process, served):
        with httpx.Client(base_url=served["url"]) as http:
            assert http.get("/readyz").json() == {"ok": True}
            account = http.get("/v1/billing", headers={"Authorization": f"Bearer {key}"})
            assert account.json()["balance_cents"] == 7
            gate = http.get("/v1/gate/42", headers={"Authorization": "Bearer telephony"})
            assert gate.json() == {"allowed": True, "balance_cents": 7, "max_duration_seconds": None}
            assert http.get(served["docs"]).status_code == 200
            assert http.get("/metrics").status_code == 404  # they have a port of their own
            metrics = http.get(f"http://127.0.0.1:{metrics_port}/metrics").text
            assert 'metering_http_requests_total{method="GET",route="/readyz",status="200"} 1.0' in metrics
            assert 'metering_http_request_seconds_bucket{le="0.5",method="GET",route="/readyz"' in metrics
            cli.run("key", "revoke", "1")
            stopped = http.get("/v1/billing", headers={"Authorization": f"Bearer {key}"})
            assert stopped.status_code == 401
            status, _, errors = end(process, signal.SIGTERM)
            assert status == 0, errors
        for line in errors.splitlines():
            assert key not in line
            assert json.loads(line)["level"] in {"info", "warning"}


def test_a_port_that_is_taken_is_named_before_anything_is_waited_for(offline: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        sentence = Cli({**offline.settings, **NO_STRIPE, "METERING_HTTP_PORT": port}).fail("api")
    assert sentence.startswith(f"METERING_HTTP_PORT: 127.0.0.1:{port} can't be served")


def test_without_stripe_it_does_not_start(database: Database, redis_url: str) -> None:
    for missing in ("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"):
        settings = {
            name: value for name, value in api(database, redis_url).settings.items() if name != missing
        }
        if missing == "STRIPE_API_KEY":
            del settings["STRIPE_API_BASE"]
        assert Cli(settings).fail("api").startswith(f"{missing} is missing")
