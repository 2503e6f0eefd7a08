"""`metering org` and `metering adjust`."""

import pytest
import redis

from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.db import execute_as


def help_text(cli: Cli, command: str) -> str:
    """Its words, without the frames that break its lines."""
    return " ".join(cli.run(command, "--help").stdout.replace("│", " ").split())


def test_create_gives_the_id_and_nothing_else(cli: Cli) -> None:
    assert cli.json("org", "create", "Acme") == {"org_id": 1}
    assert cli.json("org", "create", "Zenith", "--id", "42") == {"org_id": 42}
    assert "Org 2 is made: Acme" in cli.run("org", "create", "Acme").stdout


def test_list_has_every_org_in_order(cli: Cli) -> None:
    for name, org_id in [("Zenith", "42"), ("Acme", "7")]:
        cli.run("org", "create", name, "--id", org_id)
    listed = cli.json("org", "list")
    assert set(listed) == {"results", "total"}
    assert listed["total"] == 2
    assert [(org["org_id"], org["name"], org["balance_cents"]) for org in listed["results"]] == [
        (7, "Acme", 0),
        (42, "Zenith", 0),
    ]
    assert listed["results"][0]["created_at"].endswith("Z")


def test_list_in_pages(cli: Cli) -> None:
    for org_id in ("1", "2", "3"):
        cli.run("org", "create", "Acme", "--id", org_id)
    page = cli.json("org", "list", "--limit", "2", "--offset", "1")
    assert ([org["org_id"] for org in page["results"]], page["total"]) == ([2, 3], 3)
    shown = cli.run("org", "list", "--limit", "2").stdout
    assert "2 of 3; --offset 2 shows the next." in shown


def test_list_of_none_says_so(cli: Cli) -> None:
    assert cli.json("org", "list") == {"results": [], "total": 0}
    assert cli.run("org", "list").stdout == "There are no orgs.\n"


def test_a_pause_is_listed_for_as_long_as_it_holds(cli: Cli, database: Database) -> None:
    cli.run("org", "create", "Acme")
    execute_as(
        database.admin_url,
        "UPDATE accounts SET auto_reload_enabled = true, auto_reload_minimum_cents = 500, auto_reload_amount_cents = 2000",
        "INSERT INTO reload_states (org_id, pause_code, pause_lifts_with, paused_at, paused_until, skip_reason, skip_since)"
        " VALUES (1, 'insufficient_funds', 'time', now(), metering_now() + interval '1 hour', 'paused', now())",
    )
    assert cli.json("org", "list")["results"][0]["auto_reload"] == "insufficient_funds"
    execute_as(database.admin_url, "UPDATE reload_states SET paused_until = metering_now()")
    assert cli.json("org", "list")["results"][0]["auto_reload"] == "on"


def test_a_taken_id_is_an_error(cli: Cli) -> None:
    cli.run("org", "create", "Acme", "--id", "5")
    assert cli.fail("org", "create", "Other", "--id", "5").startswith("id: org 5 exists already")


def test_what_could_steer_a_terminal_is_refused(offline: Cli) -> None:
    for name in ("", "  ", "a\nb", "a\x1b[31mb", "x" * 201, "\udcff"):
        assert offline.fail("org", "create", name).startswith("NAME: must be 1 to 200 printable characters")


@pytest.mark.parametrize("org_id", ["0", "-1", str(2**63)])
def test_an_id_out_of_range_is_refused(offline: Cli, org_id: str) -> None:
    assert offline.fail("org", "create", "Acme", "--id", org_id).startswith(
        "id: must be a whole number from 1"
    )


def test_adjust_adjusts_once_per_key(cli: Cli) -> None:
    cli.run("org", "create", "Acme")
    arguments = ("adjust", "1", "--cents", "1250", "--reason", "First credit", "--key", "k1")
    first = cli.json(*arguments)
    assert first == {
        "org_id": 1,
        "transaction_id": first["transaction_id"],
        "amount_cents": 1250,
        "balance_after_cents": 1250,
        "adjusted": True,
    }
    assert cli.json(*arguments) == first | {"adjusted": False}
    assert cli.run(*arguments).stdout.startswith("Nothing changed: key k1 adjusted org 1 by 12.50 USD before")
    taken = cli.run("adjust", "1", "--cents", "-1300", "--reason", "Taken back", "--key", "k2")
    assert taken.stdout == "Org 1 is adjusted by -13.00 USD; its balance is -0.50 USD.\n"
    assert cli.json("org", "list")["results"][0]["balance_cents"] == -50


def test_adjust_repeated_lets_the_gate_follow(cli: Cli, redis_client: redis.Redis) -> None:
    cli.run("org", "create", "Acme")
    arguments = ("adjust", "1", "--cents", "1250", "--reason", "First credit", "--key", "k1")
    cli.run(*arguments)
    cli.run("adjust", "1", "--cents", "50", "--reason", "Second credit", "--key", "k2")
    gate = redis_client.hgetall("gate:1")
    redis_client.delete("gate:1")  # as after a crash between the commit and the gate
    cli.run(*arguments)
    assert redis_client.hgetall("gate:1") == gate
    assert (gate[b"state"], gate[b"balance_cents"]) == (b"open", b"1300")


def test_adjust_keys_are_each_orgs_own(cli: Cli) -> None:
    for org in ("1", "2"):
        cli.run("org", "create", "Acme", "--id", org)
        assert cli.json("adjust", org, "--cents", "5", "--reason", "why", "--key", "k")["adjusted"]
    assert "Another org's keys are its own" in help_text(cli, "adjust")


def test_adjust_refuses_what_it_cannot_do(cli: Cli) -> None:
    cli.run("org", "create", "Acme")

    def fail(org: str = "1", cents: str = "5", reason: str = "why", key: str = "k") -> str:
        return cli.fail("adjust", org, "--cents", cents, "--reason", reason, "--key", key)

    cli.run("adjust", "1", "--cents", "5", "--reason", "why", "--key", "k")
    assert fail(cents="6").startswith("key: 'k' was used before for org 1, for 5 cents, 'why'")
    assert fail(reason="other").startswith("key: 'k' was used before")
    assert fail(org="9") == "ORG: there is no org 9; `metering org find TEXT` finds one by its name."
    assert fail(cents="0", key="k0").startswith("cents: must be a whole number")
    assert fail(cents=str(10**30), key="k0").startswith("cents: must be a whole number")
    assert fail(org="0").startswith("ORG: must be a whole number from 1")
    assert fail(reason="\x1b").startswith("reason: must be 1 to 500 printable characters")
    assert fail(key="").startswith("key: must be 1 to 200 printable characters")
    assert cli.json("org", "list")["results"][0]["balance_cents"] == 5
