"""`metering call list --lapsed`, `metering call dismiss`, and what is told of holds and of balances below zero."""

import threading
from typing import Any

import pytest
import redis

from metering.rules.hold_terms import HoldTerms, held_prices
from metering.signals.holds import Holds
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.spine.billing import event, prepare, price, push, running_meters
from tests.waiting import wait_until
from workers.overspent import OVERSPENT_CENTS, OVERSPENT_ORGS, overspent_task
from workers.stream import backlog

TERMS = HoldTerms("bolt", "inbound", 60, held_prices([price("bolt", "0.08")])).encode()


@pytest.fixture
def holding(cli: Cli, database: Database, redis_client: redis.Redis) -> Cli:
    """Orgs 1 and 2 with 100 cents each: of 1 a call runs, one lapses at once; of 2 one that telephony held by itself."""
    prepare(database.engine, org_ids=[1, 2, 3], prices=[price("bolt", "0.08")])
    for org_id in ("1", "2"):
        cli.run("adjust", org_id, "--cents", "100", "--reason", "x", "--key", "k")
    holds = Holds(redis_client)
    holds.start(1, 10, 24, 600, TERMS)
    holds.start(1, 11, 8, 1, TERMS)
    holds.start(2, 12, 16, 1)
    wait_until(lambda: sum(each.lapsed_calls for each in holds.totals([1, 2])) == 2, limit_s=30)
    return cli


def test_lapsed_calls_are_listed_with_what_is_known_of_them(holding: Cli) -> None:
    found = holding.json("call", "list", "--lapsed")
    assert found["total"] == 2
    assert [(each["org_id"], each["call_id"], each["held_cents"]) for each in found["results"]] == [
        (1, 11, 8),
        (2, 12, 16),
    ]
    known, unknown = found["results"]
    assert (known["tier"], known["direction"], known["max_duration_seconds"]) == ("bolt", "inbound", 60)
    assert (unknown["tier"], unknown["direction"], unknown["max_duration_seconds"]) == (None, None, None)
    assert known["held_since"] < known["lapsed_at"]
    assert [each["call_id"] for each in holding.json("call", "list", "2", "--lapsed")["results"]] == [12]
    assert holding.json("call", "list", "3", "--lapsed") == {"results": [], "total": 0}
    assert holding.json("call", "list", "--lapsed", "--limit", "1")["total"] == 2
    assert "inbound" in holding.run("call", "list", "--lapsed").stdout
    assert "no lapsed calls" in holding.run("call", "list", "3", "--lapsed").stdout
    assert "name the org" in holding.fail("call", "list")
    assert "leave it out" in holding.fail("call", "list", "1", "--lapsed", "--before-id", "5")


def test_a_lapsed_call_is_dismissed_once_and_with_a_name(holding: Cli, redis_client: redis.Redis) -> None:
    dismiss = ("call", "dismiss", "1", "11", "--reason", "its switch burnt down")
    assert "may run until" in holding.fail("call", "dismiss", "1", "10", "--reason", "x")
    assert "nothing is held" in holding.fail("call", "dismiss", "1", "999", "--reason", "x")
    done = holding.json(*dismiss)
    assert (done["call_id"], done["held_cents"]) == (11, 8)
    assert "nothing is held for call 11 of org 1" in holding.fail(*dismiss)
    assert Holds(redis_client).totals([1])[0].held_cents == 24
    (logged,) = [
        each for each in holding.json("log", "--org", "1")["results"] if each["action"] == "call dismiss"
    ]
    assert (logged["subject"], logged["reason"]) == ("11", "its switch burnt down")
    assert logged["details"]["held_cents"] == 8


def test_status_and_org_show_tell_what_is_held(holding: Cli) -> None:
    assert holding.json("status")["holds"] == {
        "orgs": 2,
        "held_cents": 48,
        "running_calls": 1,
        "lapsed_calls": 2,
    }
    assert "lapsed calls, whose event is late or lost" in holding.run("status").stdout
    assert holding.json("org", "show", "1")["held"] == {
        "held_cents": 32,
        "available_cents": 68,
        "running_calls": 1,
        "lapsed_calls": 1,
    }
    shown = " ".join(holding.run("org", "show", "1").stdout.split())
    assert "0.32 USD for 1 running and 1 lapsed calls; available 0.68 USD" in shown
    assert holding.json("org", "show", "3")["held"]["held_cents"] == 0


def test_what_took_balances_below_zero_is_told(
    holding: Cli, database: Database, redis_client: redis.Redis
) -> None:
    holding.run("call", "dismiss", "2", "12", "--reason", "x")
    # Org 1 runs beyond its hold, org 2's dismissed call comes after all, org 3 takes no holds.
    calls: list[Any] = [
        event(org_id=1, call_id=10, duration_seconds=60 * 13),
        event(org_id=2, call_id=12, duration_seconds=60 * 14),
        event(org_id=3, call_id=13, duration_seconds=60),
        event(org_id=3, call_id=14, duration_seconds=60),  # it was below before
    ]
    for each in calls:
        push(redis_client, [each])
        with running_meters(database.engine, redis_client):
            wait_until(lambda: backlog(redis_client).length == 0, limit_s=30)
    holding.run("org", "create", "Four", "--id", "4")
    holding.run("adjust", "4", "--cents", "-30", "--reason", "x", "--key", "k")
    found = holding.json("status")["overspent"]
    assert (found["orgs"], found["cents"]) == (4, 4 + 12 + 16 + 30)
    assert found["reasons"] == {
        "call_beyond_hold": {"orgs": 1, "cents": 4},
        "call_dismissed": {"orgs": 1, "cents": 12},
        "call_without_hold": {"orgs": 1, "cents": 16},
        "adjustment": {"orgs": 1, "cents": 30},
    }
    assert "call_beyond_hold" in holding.run("status").stdout
    overspent_task(database.engine, Holds(redis_client)).work(threading.Event())
    told = {sample.labels["reason"]: sample.value for sample in next(iter(OVERSPENT_CENTS.collect())).samples}
    assert told == {
        "call_beyond_hold": 16,
        "call_without_hold": 16,
        "adjustment": 30,
        "refund": 0,
        "earlier": 0,
    }
    assert {each.labels["reason"]: each.value for each in next(iter(OVERSPENT_ORGS.collect())).samples}[
        "refund"
    ] == 0
