"""`metering tier`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from db.ledger.prices import set_price
from db.postgres.engine import transaction
from metering.rules.pricing import Price
from tests.cli.conftest import Cli
from tests.conftest import Database


def test_a_first_price_is_in_force_since_ever(cli: Cli) -> None:
    assert cli.json("tier", "set", "bolt", "0.08") == {
        "tier": "bolt",
        "org_id": None,
        "usd_per_minute": "0.08",
        "steps": None,
        "increment": "60/60",
        "minimum_seconds": 0,
        "connect_fee_usd": "0.00",
        "in_force_from": None,
        "changed": True,
        "replaced": None,
        "followed_by": None,
    }
    said = cli.run("tier", "set", "bolt", "0.08").stdout
    assert said.startswith(
        "Nothing changed: tier bolt costs $0.08 per minute, in increments of 60/60 s, since ever"
    )


def test_every_term_of_a_later_price(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    start = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    local = start.astimezone(UTC).isoformat().replace("+00:00", "") + "+00:00"
    terms = ("--increment", "30/6", "--minimum", "30", "--connect-fee", "0.015", "--from", local)
    later = cli.json("tier", "set", "bolt", "0.333333", *terms)
    assert later == {
        "tier": "bolt",
        "org_id": None,
        "usd_per_minute": "0.333333",
        "steps": None,
        "increment": "30/6",
        "minimum_seconds": 30,
        "connect_fee_usd": "0.015",
        "in_force_from": start.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "changed": True,
        "replaced": None,
        "followed_by": None,
    }
    listed = cli.json("tier", "list")
    assert listed["total"] == 2
    assert [price["usd_per_minute"] for price in listed["results"]] == ["0.08", "0.333333"]
    said = cli.run("tier", "set", "bolt", "0.333333", *terms).stdout
    assert "in increments of 30/6 s, at least 30 s, plus $0.015 per call, from 20" in said
    assert "0.333333" in cli.run("tier", "list").stdout


def test_a_later_price_starts_a_minute_from_now_unless_told(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    start = datetime.fromisoformat(cli.json("tier", "set", "bolt", "0.09")["in_force_from"])
    assert timedelta(seconds=30) < start - datetime.now(UTC) <= timedelta(seconds=60)


def start_from_now(price: dict[str, Any]) -> timedelta:
    return datetime.fromisoformat(price["in_force_from"]) - datetime.now(UTC)


def test_a_price_that_is_to_come_does_not_keep_it_from_coming_earlier(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    cli.run("tier", "set", "bolt", "0.10", "--from", "2999-01-01T00:00:00Z")
    done = cli.json("tier", "set", "bolt", "0.10")
    assert done["changed"]
    assert timedelta(seconds=30) < start_from_now(done) <= timedelta(seconds=60)
    assert done["followed_by"]["in_force_from"] == "2999-01-01T00:00:00.000Z"
    again = cli.json("tier", "set", "bolt", "0.10")
    assert (again["changed"], again["in_force_from"]) == (False, done["in_force_from"])
    assert cli.json("tier", "list")["total"] == 3


def test_nothing_changes_but_another_price_follows(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    cli.run("tier", "set", "bolt", "0.10", "--from", "2999-01-01T00:00:00Z")
    said = cli.run("tier", "set", "bolt", "0.08").stdout
    first, second = said.splitlines()
    assert first == (
        "Nothing changed: tier bolt costs $0.08 per minute, in increments of 60/60 s, since ever, as was set before."
    )
    assert second == (
        "Another price follows: tier bolt costs $0.10 per minute, in increments of 60/60 s,"
        " from 2999-01-01T00:00:00.000Z on. It was set before, and stays (`metering tier list` shows all)."
    )
    assert cli.json("tier", "list")["total"] == 2


def test_the_time_that_a_refusal_proposes_is_taken(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    said = cli.fail("tier", "set", "bolt", "0.06", "--from", "2020-01-01T00:00:00Z")
    (proposed,) = re.findall(r"ask for (\S+Z) or later", said)
    assert cli.json("tier", "set", "bolt", "0.06", "--from", proposed)["changed"]


def test_the_lead_time_counts_from_when_the_prices_are_locked(database: Database) -> None:
    read: list[int] = []

    def clock() -> datetime:
        with database.engine.connect() as other:
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            read.append(int(other.scalar(text(held)) or 0))
        return datetime.now(UTC)

    with transaction(database.engine) as connection:
        set_price(connection, Price("bolt", None, 80_000, 60, 60, 0, 0), clock)
    assert read == [1]


def test_offsets_are_understood(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    later = cli.json("tier", "set", "bolt", "0.1", "--from", "2999-01-01T02:00:00+02:00")
    assert later["in_force_from"] == "2999-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Bolt!", "0.08"], "tier must be 1 to 64 of a-z"),
        (["bolt"], "USD_PER_MINUTE: say either a price per minute, or its steps"),
        (["bolt", "0.08", "--step", ":0.05"], "USD_PER_MINUTE: say either a price per minute, or its steps"),
        (["bolt", "--step", "500:0"], "step: the last step must have no end"),
        (["bolt", "--step", "x:0", "--step", ":1"], "step: 'x:0' must be UP_TO_MINUTES:RATE"),
        (["bolt", "8 cents"], "USD_PER_MINUTE: must be plain USD from 0"),
        (["bolt", "0.0000001"], "USD_PER_MINUTE: must be plain USD from 0"),
        (["bolt", "0.08", "--connect-fee", "1e3"], "connect-fee: must be plain USD from 0"),
        (["bolt", "0.08", "--increment", "60"], "increment: must be FIRST/NEXT in whole seconds"),
        (["bolt", "0.08", "--minimum", "604801"], "minimum: must be from 0 to 604800 seconds"),
        (
            ["bolt", "0.08", "--from", "2999-01-01T00:00:00"],
            "from: must be an ISO 8601 date and time with an offset",
        ),
        (["bolt", "0.08", "--from", "tomorrow"], "from: must be an ISO 8601 date and time with an offset"),
        (["bolt", "0.08", "--from", "0001-01-01T00:00:00+14:00"], "from: must be an ISO 8601 date and time"),
    ],
)
def test_bad_terms_are_named(offline: Cli, arguments: list[str], sentence: str) -> None:
    assert offline.fail("tier", "set", *arguments).startswith(sentence)


def test_prices_that_come_too_early_are_refused(cli: Cli) -> None:
    said = cli.fail("tier", "set", "bolt", "0.08", "--from", "2999-01-01T00:00:00Z")
    assert said.startswith("from: the first price of tier bolt is in force since ever")
    assert cli.json("tier", "list")["total"] == 0
    cli.run("tier", "set", "bolt", "0.08")
    said = cli.fail("tier", "set", "bolt", "0.06", "--from", "2020-01-01T00:00:00Z")
    assert said.startswith("from: a later price starts at least 60 s ahead")
    assert cli.json("tier", "list")["total"] == 1


def test_help_says_what_a_connect_fee_is(offline: Cli) -> None:
    assert "USD per call" in offline.run("tier", "set", "--help").stdout


FROM = "2999-01-01T00:00:00.000Z"
EVERY_MINUTE = "in increments of 60/60 s"


def test_an_orgs_own_price_from_setting_to_ending_it(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    cli.run("org", "create", "Acme", "--id", "42")
    done = cli.json("tier", "set", "bolt", "0.07", "--org", "42", "--from", FROM)
    assert (done["org_id"], done["usd_per_minute"], done["in_force_from"]) == (42, "0.07", FROM)
    replaced = cli.run("tier", "set", "bolt", "0.06", "--org", "42", "--from", FROM).stdout.splitlines()
    assert replaced == [
        f"Tier bolt costs org 42 $0.06 per minute, {EVERY_MINUTE}, from {FROM} on.",
        f"That replaces what was set for then: tier bolt costs org 42 $0.07 per minute, {EVERY_MINUTE}, from {FROM} on.",
    ]
    ended = cli.run("tier", "clear", "bolt", "--org", "42", "--from", "2999-02-01T00:00:00Z").stdout
    assert ended == "Org 42 pays what all pay for tier bolt, from 2999-02-01T00:00:00.000Z on.\n"
    listed = cli.json("tier", "list", "--org", "42")
    assert [(each["org_id"], each["usd_per_minute"]) for each in listed["results"]] == [
        (42, "0.06"),
        (42, None),
    ]
    assert cli.json("tier", "list", "--orgs") == listed
    assert cli.json("tier", "list")["total"] == 1
    assert "1 org with prices of their own" in cli.run("tier", "list").stdout
    table = cli.run("tier", "list", "--org", "42").stdout
    assert "the tier's" in table
    assert "Where org 42 has no price of its own" in table
    assert cli.json("tier", "cancel", "bolt", "--org", "42", "--from", FROM)["cancelled"]
    assert cli.json("tier", "list", "--org", "42")["total"] == 1
    assert "org 43; `metering org find" in cli.fail(
        "tier", "set", "bolt", "0.07", "--org", "43", "--from", FROM
    )
    log = cli.json("log", "--org", "42")["results"]
    assert [each["action"] for each in log][:4] == ["tier cancel", "tier clear", "tier set", "tier set"]
    assert log[2]["details"]["replaced"]["usd_per_minute"] == "0.07"


def test_a_price_that_is_ten_times_the_one_before_wants_a_yes(cli: Cli) -> None:
    cli.run("tier", "set", "bolt", "0.08")
    said = cli.fail("tier", "set", "bolt", "0.81", "--from", FROM)
    assert said.startswith(
        "USD_PER_MINUTE: $0.81 is more than ten times the $0.08 before it. Say --yes if that is meant."
    )
    assert cli.json("tier", "set", "bolt", "0.81", "--from", FROM, "--yes")["changed"]
    said = cli.run("tier", "cancel", "bolt", "--from", FROM).stdout
    assert said.startswith("Cancelled: tier bolt costs $0.81 per minute")
    assert "nothing was set for tier bolt" in cli.fail("tier", "cancel", "bolt", "--from", FROM)


def test_a_price_with_steps(cli: Cli) -> None:
    steps = ("--step", "500:0", "--step", "2000:0.06", "--step", ":0.05")
    done = cli.json("tier", "set", "bolt", *steps)
    assert (done["usd_per_minute"], done["steps"]) == (None, ["500:0.00", "2000:0.06", ":0.05"])
    said = cli.run("tier", "set", "bolt", *steps).stdout
    assert said.startswith(
        "Nothing changed: tier bolt costs nothing up to 500 minutes of the month, then $0.06 up to 2000 minutes of the month,"
        " then $0.05 per minute"
    )
    assert "500:0.00 2000:0.06 :0.05" in cli.run("tier", "list").stdout
    assert "more than ten times" in cli.fail(
        "tier", "set", "bolt", "--step", "1:0.05", "--step", ":0.61", "--from", FROM
    )
    assert cli.json("tier", "set", "bolt", "--step", ":0.07", "--from", FROM)["usd_per_minute"] == "0.07"
    cli.run("org", "create", "Acme", "--id", "42")
    assert cli.json("org", "show", "42")["prices"][0]["used_seconds"] == 0
    assert "0 minutes of bolt used this month." in cli.run("org", "show", "42").stdout


def test_prices_of_one_org_or_of_all(offline: Cli) -> None:
    assert offline.fail("tier", "list", "--org", "1", "--orgs").startswith("orgs: say either")
