"""The demo's way in: cards are charged at the stand-in for Stripe, each thing in a container of its own."""

import re

import pytest

from tests.containers.docker import Installation

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900), pytest.mark.usefixtures("api_key")]


def test_a_top_up_is_charged_and_credited_over_the_containers(
    installation: Installation, api_key: str
) -> None:
    """A card saved and charged by the API, answered by the stand-in, told by its webhook, seen in the ledger."""
    installation.start(jobs=2)
    installation.compose("--profile", "demo", "up", "--detach", "--wait", "stripe")
    before = installation.balance_cents()
    said = installation.compose(
        *("run", "--rm", "-T", "--entrypoint", "python", "-e", f"API_KEY={api_key}", "operator", "-c", TOP_UP)
    )
    assert said.strip() == "['succeeded', 'succeeded'] one payment"
    assert installation.balance_cents() == before + 2_500
    installation.operator("audit", "--stripe")


TOP_UP = """
import os
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.customers.cardholders import StandInCardholders
api = CustomerApi(8000, os.environ["API_KEY"], "api")
holders = StandInCardholders(os.environ["STRIPE_API_BASE"])
made = api.ask("POST", "/v1/billing/setup-intent")
card = holders.save_card(made.body["setup_intent_id"], "pm_card_visa")
answer = api.ask("POST", "/v1/billing/default-payment-method", {"payment_method_id": card})
assert answer.status == 200, answer
answers = [api.ask("POST", "/v1/billing/top-up", {"amount_cents": 2500}, key="first") for _ in range(2)]
one = len({answer.body["payment_intent_id"] for answer in answers}) == 1
print([answer.body["status"] for answer in answers], "one payment" if one else answers)
"""


def test_the_demo_ends_with_a_passed_audit(installation: Installation) -> None:
    installation.start(meters=2)
    shown = installation.compose("--profile", "demo", "run", "--rm", "-T", "demo")
    assert "NOT STRIPE" in shown
    assert re.search(r"^Audit of .*: passed\.$", shown, re.MULTILINE)
    assert "metering up" not in shown
    assert "docker compose --env-file demo.env run --rm operator org list" in shown
    charged = installation.compose("--profile", "demo", "logs", "--no-color", "stripe")
    assert "this is a sandbox, not Stripe" in charged
