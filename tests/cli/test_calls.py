"""`metering call`: one call's story from what is stored; and dismissing what will never be billed."""

from datetime import datetime

import pytest
import redis

from metering.runtime.clock import system_clock
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.spine.billing import event, prepare, price, push, running_meters
from tests.waiting import wait_until
from workers.stream import backlog


def bill(database: Database, client: redis.Redis) -> None:
    with running_meters(database.engine, client):
        wait_until(lambda: backlog(client).length == 0, limit_s=30)


@pytest.fixture
def billed(cli: Cli, database: Database, redis_client: redis.Redis) -> Cli:
    """Org 42 with call 11 billed, and call 12 rejected for its tier."""
    prepare(database.engine, org_ids=[42, 7], prices=[price("bolt", "0.08")])
    cli.run("adjust", "42", "--cents", "100", "--reason", "x", "--key", "k")
    calls = [
        event(org_id=42, call_id=11, duration_seconds=75, metadata={"agent": "Ann"}),
        event(org_id=42, call_id=12, tier="gold"),
        event(org_id=7, call_id=11, duration_seconds=1),
    ]
    push(redis_client, calls)
    bill(database, redis_client)
    return cli


def test_a_billed_call_s_story(billed: Cli) -> None:
    story = billed.json("call", "show", "42", "11")
    debit = story["debit"]
    assert (debit["amount_cents"], debit["balance_after_cents"], debit["billable_seconds"]) == (-16, 84, 120)
    assert (debit["usd_per_minute"], debit["increment"], debit["tier"]) == ("0.08", "60/60", "bolt")
    assert (debit["duration_seconds"], debit["metadata"]) == (75, {"agent": "Ann"})
    assert story["price_in_force_from"] is None
    assert story["price_is_the_book_s"] is True
    assert story["rejected"] == []
    pushed, posted = (datetime.fromisoformat(debit[name]) for name in ("pushed_at", "created_at"))
    assert 0 <= (posted - pushed).total_seconds() < 60
    assert abs((system_clock() - posted).total_seconds()) < 120
    shown = " ".join(billed.run("call", "show", "42", "11").stdout.split())
    for words in (
        "Call 11 of org 42: billed",
        f"pushed {debit['pushed_at']}, entry {debit['stream_id']}",
        f"transaction {debit['transaction_id']}",
        "bolt: $0.08 per minute, increments of 60/60 s; in force since ever",
        "120 s: Call billing: 2 minutes × $0.08",
        "debit -0.16 USD",
        "balance after 0.84 USD",
        "'agent': 'Ann'",
    ):
        assert words in shown, (words, shown)


def test_the_price_is_the_one_in_force_when_the_call_started(billed: Cli) -> None:
    billed.run("tier", "set", "bolt", "0.50")  # from a minute from now on
    assert billed.json("call", "show", "42", "11")["price_in_force_from"] is None


def test_a_rejected_call_s_story_and_its_replay(
    billed: Cli, database: Database, redis_client: redis.Redis
) -> None:
    story = billed.json("call", "show", "42", "12")
    assert story["debit"] is None
    (rejected,) = story["rejected"]
    assert (rejected["reason"], rejected["replayed_at"]) == ("unknown_tier", None)
    assert "metering rejected replay" in billed.run("call", "show", "42", "12").stdout

    billed.run("tier", "set", "gold", "0.30")
    billed.run("rejected", "replay", str(rejected["id"]))
    bill(database, redis_client)
    story = billed.json("call", "show", "42", "12")
    assert story["debit"]["amount_cents"] < 0
    assert story["rejected"][0]["replayed_as"] == story["debit"]["stream_id"]
    (entry,) = [
        each for each in billed.json("log", "--org", "42")["results"] if each["action"] == "rejected replay"
    ]
    assert entry["subject"] == str(rejected["id"])


def test_a_call_that_nobody_knows(billed: Cli) -> None:
    said = billed.fail("call", "show", "42", "13")
    assert said.startswith("Nothing is stored of call 13 of org 42:")
    assert billed.fail("call", "show", "42", "0").startswith("CALL_ID: must be a whole number")
    assert billed.json("call", "show", "7", "11")["debit"]["amount_cents"] == -8


def test_list_has_an_orgs_billed_calls_newest_first(
    billed: Cli, database: Database, redis_client: redis.Redis
) -> None:
    push(redis_client, [event(org_id=42, call_id=number, duration_seconds=30) for number in (21, 22, 23)])
    bill(database, redis_client)
    found = billed.json("call", "list", "42")
    assert ([each["call_id"] for each in found["results"]], found["total"]) == ([23, 22, 21, 11], 4)
    page = billed.json(
        "call", "list", "42", "--limit", "2", "--before-id", str(found["results"][1]["transaction_id"])
    )
    assert [each["call_id"] for each in page["results"]] == [21, 11]
    assert "shows the next" in billed.run("call", "list", "42", "--limit", "1").stdout
    assert billed.run("call", "list", "9").stdout == "There are no billed calls.\n"


def test_what_will_never_be_billed_is_dismissed_with_a_reason(billed: Cli) -> None:
    (waiting,) = billed.json("rejected", "list")["results"]
    rejected_id = str(waiting["id"])
    done = billed.json("rejected", "dismiss", rejected_id, "--reason", "a test call")
    assert done == {"results": [{"id": waiting["id"]}], "total": 1, "refused": []}
    assert billed.json("rejected", "list")["total"] == 0
    (listed,) = billed.json("rejected", "list", "--all")["results"]
    assert listed["dismissed_reason"] == "a test call"
    assert listed["dismissed_at"] is not None
    # The same again changes nothing, another reason is refused; it is not replayed by the way.
    billed.run("rejected", "dismiss", rejected_id, "--reason", "a test call")
    assert (
        "dismissed before: a test call"
        in billed.run("rejected", "dismiss", rejected_id, "--reason", "other", status=1).stderr
    )
    assert billed.run("rejected", "replay", "--all").stdout == "0 events replayed.\n"
    assert "--again" in billed.run("rejected", "replay", rejected_id, status=1).stderr
    assert "no rejected event" in billed.run("rejected", "dismiss", "999", "--reason", "x", status=1).stderr
    assert "a test call" in billed.run("call", "show", "42", "12").stdout
    entries = [each for each in billed.json("log")["results"] if each["action"] == "rejected dismiss"]
    assert [(each["org_id"], each["subject"], each["reason"]) for each in entries] == [
        (42, rejected_id, "a test call")
    ]
    billed.run("rejected", "replay", rejected_id, "--again")
    assert "was replayed" in billed.run("rejected", "dismiss", rejected_id, "--reason", "x", status=1).stderr
