"""What an operator asks of orgs every day: finding, showing, renaming, listing those that run dry."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from sqlalchemy import text

from db.ledger.daily_usage import count_page
from db.ledger.rejections import RejectedEntry, keep_rejected
from db.postgres.engine import driver_connection, transaction
from metering.rules.rejections import Reason, Rejection
from metering.runtime.clock import system_clock
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.db import execute_as
from tests.db.audit.ledger import BOLT, FINE, a_call, make_orgs, make_prices, post
from tests.payments.world import World, make_world
from tests.spine.billing import event, prepare, price, push, running_meters
from tests.waiting import wait_until
from workers.stream import backlog


def ids(found: dict[str, list[dict[str, int]]]) -> list[int]:
    return [each["org_id"] for each in found["results"]]


@pytest.fixture
def named(cli: Cli) -> Cli:
    for org_id, name in (
        (3, "Acme Dialers"),
        (7, "ACME Support 42"),
        (42, "Zenith"),
        (43, "50%_off\\ calls"),
        (44, "Zz"),
    ):
        cli.run("org", "create", name, "--id", str(org_id))
    return cli


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("acme", [3, 7]),
        ("ACME", [3, 7]),
        ("me d", [3]),
        ("zenith", [42]),
        ("z", [42, 44]),
        ("zz", [44]),
        ("42", [42, 7]),
        ("999", []),
        ("nobody", []),
        ("%", [43]),
        ("_", [43]),
        ("0%_", [43]),
        ("f\\ c", [43]),
        ("acme dialers and more", []),
        ("9223372036854775808", []),
    ],
)
def test_an_org_is_found_by_a_part_of_its_name_or_by_its_id(
    named: Cli, wanted: str, found: list[int]
) -> None:
    answer = named.json("org", "find", wanted)
    assert (ids(answer), answer["total"]) == (found, len(found))


def test_a_page_of_what_is_found_with_the_total(named: Cli) -> None:
    answer = named.json("org", "find", "e", "--limit", "1", "--offset", "1")
    assert (ids(answer), answer["total"]) == ([7], 3)
    assert "Zenith" in named.run("org", "find", "zen").stdout
    assert named.run("org", "find", "nobody").stdout == "There are no orgs.\n"


def test_an_org_is_found_by_its_new_name_and_no_longer_by_the_old(named: Cli) -> None:
    assert (
        named.run("org", "rename", "42", "Nadir").stdout
        == "Org 42 is called Nadir now; before, it was Zenith.\n"
    )
    assert ids(named.json("org", "find", "nad")) == [42]
    assert ids(named.json("org", "find", "zenith")) == []
    assert "Nothing changed" in named.run("org", "rename", "42", "Nadir").stdout
    (entry,) = [
        each for each in named.json("log", "--org", "42")["results"] if each["action"] == "org rename"
    ]
    assert entry["details"] == {"from": "Zenith", "to": "Nadir"}
    assert named.fail("org", "rename", "9", "x") == (
        "ORG: there is no org 9; `metering org find TEXT` finds one by its name."
    )
    assert named.fail("org", "rename", "42", " ").startswith("NAME: must be 1 to 200")


def test_orgs_made_by_the_version_before_are_found_too(cli: Cli, database: Database) -> None:
    execute_as(database.url, "INSERT INTO accounts (org_id, name, created_at) VALUES (5, 'By Hand', now())")
    assert ids(cli.json("org", "find", "by hand")) == [5]


def test_who_is_about_to_run_dry_comes_first(named: Cli) -> None:
    for org_id, cents in ((3, 500), (7, -20), (42, 90)):
        named.run("adjust", str(org_id), "--cents", str(cents), "--reason", "x", "--key", "k")
    assert ids(named.json("org", "list", "--below", "100")) == [7, 43, 44, 42]
    assert ids(named.json("org", "list", "--below", "0")) == [7]
    assert ids(named.json("org", "list", "--state", "exhausted")) == [7, 43, 44]
    assert ids(named.json("org", "list", "--state", "open")) == [3, 42]
    found = named.json("org", "list", "--state", "open", "--below", "100")
    assert (ids(found), found["total"]) == ([42], 1)
    assert found["results"][0]["state"] == "open"
    assert found["results"][0]["auto_reload"] == "off"
    page = named.json("org", "list", "--below", "100", "--limit", "2", "--offset", "1")
    assert (ids(page), page["total"]) == ([43, 44], 4)


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """Org 1 with two prices, as of now."""
    prepare(database.engine, org_ids=[], prices=[price("bolt", "0.08"), price("wire", "0.02")])
    with make_world(database, redis_client, at=system_clock()) as made:
        yield made


def test_show_has_all_of_an_org_on_one_screen(cli: Cli, world: World, redis_client: redis.Redis) -> None:
    cli.run("adjust", "1", "--cents", "30", "--reason", "a present", "--key", "k1")
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="stolen_card")
    world.settings(enabled=True, minimum_cents=1_000, amount_cents=2_000, monthly_limit_cents=4_000)
    world.work()
    key = cli.json("key", "create", "1", "--name", "the dialer")
    # A call that empties the balance, and one of a tier that isn't there.
    push(redis_client, [event(call_id=11, duration_seconds=61 * 4), event(call_id=12, tier="gold")])
    with running_meters(world.engine, redis_client):
        wait_until(lambda: backlog(redis_client).length == 0, limit_s=30)

    found = cli.json("org", "show", "1")
    assert (found["org_id"], found["balance_cents"], found["state"]) == (1, 30 - 40, "exhausted")
    assert (found["gate"]["state"], found["gate_follows"]) == ("exhausted", True)
    assert found["state_since"] == found["transactions"][0]["created_at"]
    assert found["state_since_earlier"] is False
    reload = found["auto_reload"]
    assert (reload["enabled"], reload["minimum_cents"], reload["month_left_cents"]) == (True, 1_000, 4_000)
    assert [(each["code"], each["paused"]) for each in reload["stops"]] == [("stolen_card", True)]
    assert found["cards"][0]["payment_method_id"] == method
    assert found["cards"][0]["default"] is True
    assert [(each["key_id"], each["name"]) for each in found["keys"]] == [(key["key_id"], "the dialer")]
    assert [each["tier"] for each in found["prices"]] == ["bolt", "wire"]
    assert [each["amount_cents"] for each in found["transactions"]] == [-40, 30]
    assert [each["reason"] for each in found["rejected"]] == ["unknown_tier"]
    assert [each["action"] for each in found["log"]] == ["key create", "adjust"]

    shown = cli.run("org", "show", "1").stdout
    for words in (
        "-0.10 USD, after 2 transactions",
        "exhausted since",
        "Redis has it so",
        "on: 20.00 USD when below 10.00, at most 40.00 a month, 40.00 left",
        "stolen_card, since",
        "a different card, or `metering reload resume`",
        f"{method}, default",
        "(the dialer), ends with",
        "call 11",
        "unknown_tier",
        "a present",
    ):
        assert words in shown, (words, shown)

    # Where Redis has something else, both are said.
    redis_client.hset("gate:1", "state", "open")
    found = cli.json("org", "show", "1")
    assert (found["state"], found["gate"]["state"], found["gate_follows"]) == ("exhausted", "open", False)
    assert "says Postgres" in cli.run("org", "show", "1").stdout.replace("\n", " ")
    redis_client.delete("gate:1")
    assert "Redis has no gate" in " ".join(cli.run("org", "show", "1").stdout.split())
    assert cli.fail("org", "show", "9").startswith("ORG: there is no org 9;")


def test_show_sums_up_this_months_calls_by_tier_whether_they_are_counted_or_not(
    cli: Cli, database: Database
) -> None:
    at = system_clock()
    make_orgs(database.engine, 1)
    make_prices(database.engine, BOLT, FINE)
    post(database.engine, [a_call(1, 1, "bolt", 61_000_000, at), a_call(1, 2, "fine", 1_000_000, at)])
    count_page(database.engine)
    post(database.engine, [a_call(1, 3, "bolt", 60_000_000, at)])
    month = f"{at - timedelta(seconds=61):%Y-%m}"
    assert cli.json("org", "show", "1")["usage"] == [
        {"month": month, "tier": "bolt", "calls": 2, "billable_seconds": 180, "billed_cents": 24},
        {"month": month, "tier": "fine", "calls": 1, "billable_seconds": 48, "billed_cents": 28},
    ]
    shown = cli.run("org", "show", "1").stdout
    assert f"│ {month}  │ bolt │     2 │       3 │       0.24 │" in shown
    assert "0.8" in shown


def test_a_suspended_org_is_shown_as_such(cli: Cli, world: World) -> None:
    cli.run("adjust", "1", "--cents", "500", "--reason", "x", "--key", "k")
    since = cli.json("org", "suspend", "1", "--reason", "unpaid invoice")["suspended_at"]
    found = cli.json("org", "show", "1")
    assert (found["state"], found["gate"]["state"], found["gate_follows"]) == ("suspended", "suspended", True)
    assert (found["state_since"], found["state_since_earlier"]) == (since, False)
    assert ids(cli.json("org", "list", "--state", "suspended")) == [1]
    assert ids(cli.json("org", "list", "--state", "open")) == []
    assert "unpaid invoice" in cli.run("org", "show", "1").stdout
    cli.run("org", "resume", "1", "--reason", "paid")
    assert cli.json("org", "show", "1")["state"] == "open"


def test_since_when_a_gate_is_as_it_is(cli: Cli, world: World) -> None:
    fresh = cli.json("org", "show", "1")
    assert (fresh["state"], fresh["state_since"]) == ("exhausted", fresh["created_at"])
    for number, cents in enumerate((5, -9, 9, 1)):
        cli.run("adjust", "1", "--cents", str(cents), "--reason", "x", "--key", str(number))
    found = cli.json("org", "show", "1")
    with world.engine.connect() as connection:
        third = connection.scalar(text("SELECT created_at FROM transactions ORDER BY id OFFSET 2 LIMIT 1"))
    assert third is not None
    assert found["state"] == "open"
    assert found["state_since"] == third.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_show_is_bounded_however_long_the_history_is(cli: Cli, world: World, database: Database) -> None:
    execute_as(
        database.url,
        "INSERT INTO transactions (org_id, kind, amount_cents, balance_after_cents, created_at, description, source_key)"
        " SELECT 1, 'adjustment', 1, n, now() + n * interval '1 s', 'x', n FROM generate_series(1, 1200) AS n",
    )
    execute_as(database.url, "UPDATE accounts SET balance_cents = 1200")
    found = cli.json("org", "show", "1", "--last", "3")
    assert found["state_since_earlier"] is True
    assert len(found["transactions"]) == 3
    assert "open since before" in cli.run("org", "show", "1").stdout


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'{"org_id": 1, "call_id":5', True),  # no JSON, and yet its org can be read
        (b'\xff{"org_id":1}', True),
        (b'{"org_id":"1"}', True),
        (b'{"org_id":11}', False),
        (b'{"org_id":1111111111111111111111}', False),
        (b"\x00garbage", False),
        (b"", False),
    ],
)
def test_a_rejected_event_is_shown_with_the_org_that_its_bytes_name(
    cli: Cli, world: World, raw: bytes, shown: bool
) -> None:
    with transaction(world.engine) as connection:
        entry = RejectedEntry("1-1", raw, Rejection(Reason.MALFORMED_JSON, "not JSON"))
        keep_rejected(driver_connection(connection), [entry])
    assert bool(cli.json("org", "show", "1")["rejected"]) is shown


def test_the_limit_of_concurrent_calls_is_set_shown_and_taken_away(
    cli: Cli, redis_client: redis.Redis
) -> None:
    cli.run("org", "create", "Acme", "--id", "7")
    limit = ("org", "set", "7", "--max-concurrent-calls")
    done = cli.json(*limit, "30", "--reason", "their trunk takes no more")
    assert done == {
        "org_id": 7,
        "max_concurrent_calls": 30,
        "max_concurrent_calls_before": None,
        "changed": True,
    }
    assert redis_client.hget("gate:7", "max_concurrent_calls") == b"30"
    assert "Nothing changed" in cli.run(*limit, "30").stdout
    assert "1 call at once now; before, it was 30 calls" in cli.run(*limit, "1").stdout
    found = cli.json("org", "show", "7")
    assert (found["max_concurrent_calls"], found["gate"]["max_concurrent_calls"]) == (1, 1)
    assert found["gate_follows"]
    assert "1 at most, of those that take holds" in cli.run("org", "show", "7").stdout
    assert cli.json(*limit, "none")["max_concurrent_calls"] is None
    assert redis_client.hget("gate:7", "max_concurrent_calls") is None
    logged = [each for each in cli.json("log", "--org", "7")["results"] if each["action"] == "org set"]
    assert [each["details"]["max_concurrent_calls"] for each in logged] == [
        {"from": 1, "to": None},
        {"from": 30, "to": 1},
        {"from": None, "to": 30},
    ]
    assert logged[-1]["reason"] == "their trunk takes no more"
    for wrong in ("0", "-1", "1000001", "1.5", "", "all", "٣", "9" * 30):
        assert "whole number from 1 to 1000000, or none" in cli.fail(*limit[:3], f"{limit[3]}={wrong}")
    assert cli.fail("org", "set", "8", "--max-concurrent-calls", "5").startswith("ORG: there is no org 8;")
