"""`metering key`."""

import hashlib
import json
import re
from datetime import timedelta

from sqlalchemy import text

from db.accounts.api_keys import find_org, find_orgs
from metering.rules.times import format_time
from metering.runtime.clock import system_clock
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.waiting import wait_until


def org_of(database: Database, api_key: str) -> int | None:
    with database.engine.connect() as connection:
        return find_org(connection, api_key)


def test_create_shows_the_key_this_once_and_keeps_only_its_hash(cli: Cli, database: Database) -> None:
    cli.run("org", "create", "Acme", "--id", "42")
    made = cli.json("key", "create", "42")
    assert set(made) == {"key_id", "api_key"}
    assert re.fullmatch(r"sk_live_[0-9a-f]{64}", made["api_key"])
    assert org_of(database, made["api_key"]) == 42
    with database.engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM api_keys")).mappings()
    assert row["key_sha256"] == hashlib.sha256(made["api_key"].encode()).digest()
    assert made["api_key"][8:-4] not in str(dict(row))
    assert cli.json("key", "create", "42")["api_key"] != made["api_key"]
    shown = cli.run("key", "create", "42").stdout.split()
    assert org_of(database, shown[-1]) == 42


def test_list_has_revoked_keys_too_and_never_a_key(cli: Cli) -> None:
    for org_id in ("7", "42"):
        cli.run("org", "create", "Acme", "--id", org_id)
    assert cli.json("key", "list", "42") == {"results": [], "total": 0}
    assert cli.run("key", "list", "42").stdout == "There are no keys.\n"
    first, second, _ = (cli.json("key", "create", org_id) for org_id in ("42", "42", "7"))
    cli.run("key", "revoke", str(first["key_id"]))
    listed = cli.json("key", "list", "42")
    assert listed["total"] == 2
    assert [(key["key_id"], key["hint"]) for key in listed["results"]] == [
        (made["key_id"], made["api_key"][-4:]) for made in (first, second)
    ]
    assert [key["revoked_at"] is None for key in listed["results"]] == [False, True]
    shown = cli.run("key", "list", "42").stdout
    assert all(made["api_key"][-4:] in shown for made in (first, second))
    assert "sk_live_" not in shown


def test_revoke_stops_one_key_for_ever(cli: Cli, database: Database) -> None:
    cli.run("org", "create", "Acme", "--id", "42")
    first, second = cli.json("key", "create", "42"), cli.json("key", "create", "42")
    revoked = cli.json("key", "revoke", str(first["key_id"]))
    assert (revoked["key_id"], revoked["org_id"]) == (first["key_id"], 42)
    assert org_of(database, first["api_key"]) is None
    assert org_of(database, second["api_key"]) == 42
    assert cli.json("key", "revoke", str(first["key_id"])) == revoked  # since the first time
    assert f"since {revoked['revoked_at']}" in cli.run("key", "revoke", str(first["key_id"])).stdout


def test_what_is_not_there_is_named(cli: Cli) -> None:
    assert (
        cli.fail("key", "create", "42")
        == "ORG: there is no org 42; `metering org find TEXT` finds one by its name."
    )
    assert "there is no org 42" in cli.fail("key", "list", "42")
    assert "there is no key 1" in cli.fail("key", "revoke", "1")
    assert cli.fail("key", "create", "0").startswith("ORG: must be a whole number")
    assert cli.fail("key", "revoke", "0").startswith("KEY_ID: must be a whole number")


def test_a_key_has_a_name_and_an_end(cli: Cli, database: Database) -> None:
    cli.run("org", "create", "Acme", "--id", "42")
    soon = format_time(system_clock() + timedelta(seconds=1.5))
    made = cli.json("key", "create", "42", "--name", "the dialer in Cologne", "--expires", soon)
    assert org_of(database, made["api_key"]) == 42
    (listed,) = cli.json("key", "list", "42")["results"]
    assert (listed["name"], listed["expires_at"], listed["last_used_at"]) == (
        "the dialer in Cologne",
        soon,
        None,
    )
    assert "the dialer in Cologne" in cli.run("key", "list", "42").stdout
    wait_until(lambda: org_of(database, made["api_key"]) is None, limit_s=10)
    with database.engine.connect() as connection:
        assert find_orgs(database.engine, [hashlib.sha256(made["api_key"].encode()).digest()]) == {}
        assert connection.scalar(text("SELECT expires_at <= clock_timestamp() FROM api_keys"))
    assert cli.fail("key", "create", "42", "--expires", soon) == "expires: must be a time to come."
    assert cli.fail("key", "create", "42", "--name", "a\nb").startswith("name: must be 1 to 100 printable")
    assert cli.json("key", "list", "42")["total"] == 1


def test_find_says_whose_a_key_is(cli: Cli) -> None:
    for org_id, name in (("7", "Beta"), ("42", "Acme")):
        cli.run("org", "create", name, "--id", org_id)
    mine = cli.json("key", "create", "42", "--name", "leaked")
    other = cli.json("key", "create", "7")
    for asked in (mine["api_key"], mine["api_key"][-4:]):
        found = cli.json("key", "find", asked)["results"]
        assert (found[-1]["org_id"], found[-1]["org_name"], found[-1]["key_id"], found[-1]["name"]) == (
            42,
            "Acme",
            mine["key_id"],
            "leaked",
        )
    cli.run("key", "revoke", str(mine["key_id"]))
    shown = cli.run("key", "find", mine["api_key"])
    assert "Acme" in shown.stdout
    assert mine["api_key"][:-4] not in shown.stdout + shown.stderr
    # From a pipe, so that it is in no shell's history.
    for arguments in (("key", "find", "--json"), ("key", "find", "-", "--json")):
        piped = cli.process(*arguments, stdin=f"{other['api_key']}\n".encode())
        assert piped.returncode == 0, piped.stderr
        assert json.loads(piped.stdout)["results"][0]["org_id"] == 7
    assert "no such key" in cli.fail("key", "find", "sk_live_" + "0" * 64)
    assert cli.fail("key", "find", "hello").startswith("KEY: must be a whole key")
    assert "sk_live_0" not in cli.fail("key", "find", "sk_live_" + "0" * 64)
