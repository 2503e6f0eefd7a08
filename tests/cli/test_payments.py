"""`metering payment`: what was paid at Stripe by hand is listed, and booked once."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import redis

from db.payments.set_aside_events import set_aside
from db.payments.stripe_events import EventRef
from metering.payments.outcomes import TopUpMade
from metering.runtime.clock import system_clock
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.payments.world import World, make_world


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation as of now, with org 1 and its card."""
    with make_world(database, redis_client, at=system_clock()) as made:
        made.save_card()
        yield made


@pytest.fixture
def stripe_cli(cli: Cli, world: World) -> Cli:
    """The command, with the world's Stripe."""
    stripe = {
        "STRIPE_API_KEY": world.sandbox.api_key,
        "STRIPE_API_BASE": world.sandbox.url,
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }
    return replace(cli, settings={**cli.settings, **stripe})


def test_a_payment_of_the_dashboard_is_listed_booked_and_gone_from_the_list(
    stripe_cli: Cli, world: World
) -> None:
    customer = world.account().stripe_customer_id
    intent = world.sandbox.pay_in_dashboard(customer or "", 2_500)["id"]
    world.deliver(*world.events("payment_intent.succeeded"))

    listed = stripe_cli.json("payment", "list", "--unbooked")
    assert listed["total"] == 1
    (row,) = listed["results"]
    assert (row.pop("created_at") or "").endswith("Z")
    assert row == {
        "payment_intent_id": intent,
        "org_id": 1,
        "customer_id": customer,
        "amount_cents": 2_500,
        "currency": "usd",
        "reason": "unknown_intent",
    }
    assert "unknown_intent" in " ".join(stripe_cli.run("payment", "list", "--unbooked").stdout.split())

    done = stripe_cli.json("payment", "book", "1", intent, "--reason", "invoice 17")
    assert (done["booked"], done["amount_cents"], done["customer_claimed"]) == (True, 2_500, False)
    assert (world.balance(), world.client.hget("gate:1", "state")) == (2_500, b"open")
    again = stripe_cli.run("payment", "book", "1", intent, "--reason", "invoice 18").stdout
    assert again.startswith("Nothing changed: org 1 was credited with these 25.00 USD before")
    assert stripe_cli.json("payment", "list", "--unbooked") == {"results": [], "total": 0}
    assert "There are no unbooked payments." in stripe_cli.run("payment", "list", "--unbooked").stdout
    assert stripe_cli.json("audit", "--stripe")["stripe"]["violations"] == []


def test_refusals_are_one_sentence_with_the_remedy(stripe_cli: Cli, world: World) -> None:
    world.make_org(2)
    intent = world.sandbox.pay_in_dashboard(world.account().stripe_customer_id or "", 2_500)["id"]
    assert "org 1's" in stripe_cli.fail("payment", "book", "2", intent, "--reason", "x")
    assert "no org 9" in stripe_cli.fail("payment", "book", "9", intent, "--reason", "x")
    unknown = stripe_cli.run("payment", "book", "1", "pi_none", "--reason", "x", status=1)
    assert unknown.stdout == ""  # what Stripe said is logged on standard error, before the sentence
    assert unknown.stderr.splitlines()[-1].startswith("Stripe doesn't give the payment pi_none")
    assert stripe_cli.fail("payment", "book", "1", intent, "--reason", " ").startswith("reason:")
    assert "--unbooked" in stripe_cli.fail("payment", "list")
    assert (world.balance(), world.balance(2)) == (0, 0)


def test_the_audit_tells_of_strangers_payments(stripe_cli: Cli, world: World) -> None:
    stranger = world.stripe.v1.customers.create({"name": "Somebody"}).id
    intent = world.sandbox.pay_in_dashboard(stranger, 700)["id"]
    assert stripe_cli.json("audit", "--stripe")["stripe"]["strangers"] == [intent]
    assert "payment list --unbooked" in " ".join(stripe_cli.run("audit", "--stripe").stdout.split())
    said = stripe_cli.run("payment", "book", "1", intent, "--reason", "a deposit").stdout
    assert "is org 1's from now on" in said


def test_status_and_audit_tell_of_events_that_could_not_be_handled(stripe_cli: Cli, world: World) -> None:
    assert stripe_cli.json("status")["stripe_events_set_aside"] == {"number": 0, "oldest_at": None}
    since = system_clock() - timedelta(minutes=16)
    ref = EventRef("evt_1", "refund.created", since)
    set_aside(world.engine, ref, livemode=False, data={"object": {}}, error="KeyError: 'x'", now=since)
    assert stripe_cli.json("status")["stripe_events_set_aside"]["number"] == 1
    assert "1 event of Stripe's could not be handled" in " ".join(stripe_cli.run("status").stdout.split())
    (violation,) = stripe_cli.json("audit", status=1)["violations"]
    assert (violation["invariant"], violation["org_id"]) == ("stripe_event_handled", None)
    assert "evt_1" in violation["detail"]
    assert "KeyError" in violation["detail"]


def test_events_that_wait_are_listed_tried_again_and_dismissed(stripe_cli: Cli, world: World) -> None:
    at = system_clock()
    for event_id in ("evt_1", "evt_2"):
        ref = EventRef(event_id, "refund.created", at)
        data = {"object": {"object": "refund", "payment_intent": "pi_none"}}
        set_aside(world.engine, ref, livemode=False, data=data, error="timed out", now=at)
    listed = stripe_cli.json("stripe-event", "list")
    assert [each["event_id"] for each in listed["results"]] == ["evt_1", "evt_2"]
    assert (listed["total"], listed["results"][0]["error"]) == (2, "timed out")
    assert "evt_1" in stripe_cli.run("stripe-event", "list").stdout

    assert "is dismissed" in stripe_cli.run("stripe-event", "dismiss", "evt_1", "--reason", "x").stdout
    assert "no event evt_1" in stripe_cli.fail("stripe-event", "dismiss", "evt_1", "--reason", "x")
    assert "--all" in stripe_cli.fail("stripe-event", "retry")
    # The payment that it tells of is nobody's here: that is known now, and nothing is left to try.
    assert stripe_cli.json("stripe-event", "retry", "--all") == {"handled": ["evt_2"], "failed": {}}
    assert stripe_cli.json("stripe-event", "list") == {"results": [], "total": 0}
    assert stripe_cli.run("stripe-event", "list").stdout == "There are no unhandled Stripe events.\n"
    assert "no event evt_2" in stripe_cli.fail("stripe-event", "retry", "evt_2")
    actions = [each["action"] for each in stripe_cli.json("log")["results"]]
    assert actions[:2] == ["stripe-event retry", "stripe-event dismiss"]


def test_a_payment_is_refunded_once_for_its_key(stripe_cli: Cli, world: World) -> None:
    outcome = world.top_up(2_000).outcome
    assert isinstance(outcome, TopUpMade)
    intent = outcome.payment_intent_id
    asked = ("refund", "1", intent, "--cents", "500", "--reason", "asked for", "--key", "k")
    done = stripe_cli.json(*asked)
    assert done.pop("refund_id").startswith("re_")
    assert done == {
        "org_id": 1,
        "payment_intent_id": intent,
        "amount_cents": 500,
        "status": "succeeded",
        "balance_cents": 1_500,
        "refunded": True,
    }
    assert stripe_cli.run(*asked).stdout.startswith(
        "Nothing changed: this key has made it before. 5.00 USD of"
    )
    assert "was used before" in stripe_cli.fail("refund", "1", intent, "--reason", "asked for", "--key", "k")
    assert "is not a credit" in stripe_cli.fail("refund", "1", "pi_x", "--reason", "x", "--key", "x")
    assert world.balance() == world.held_cents() == 1_500
