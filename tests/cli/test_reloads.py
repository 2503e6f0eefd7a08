"""`metering reload`: what rests or waits and what lifts it, and lifting it by hand."""

import getpass
import json
from collections.abc import Iterator

import pytest
import redis

from metering.runtime.clock import system_clock
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.payments.world import World, make_world


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation as of now, with org 1, without money or card."""
    with make_world(database, redis_client, at=system_clock()) as made:
        yield made


def declined(world: World, org_id: int = 1, code: str = "authentication_required") -> str:
    """An org whose reloads are paused by a decline; give the card."""
    method = world.save_card(org_id=org_id)
    world.sandbox.fail_card(method, decline_code=code)
    world.settings(org_id=org_id, enabled=True, minimum_cents=1_000, amount_cents=2_000)
    world.work()
    return method


def test_the_list_names_what_rests_and_what_waits_with_what_lifts_it(cli: Cli, world: World) -> None:
    assert cli.json("reload", "list") == {"results": [], "total": 0}
    assert cli.run("reload", "list").stdout == "There are no paused or waiting auto-reloads.\n"
    for org_id in range(2, 6):
        world.make_org(org_id)
    declined(world, 1)
    declined(world, 2, "stolen_card")
    declined(world, 3, "insufficient_funds")
    for org_id, limit, amount in ((4, 0, 2_000), (5, None, 50)):
        world.save_card(org_id=org_id)
        world.settings(
            org_id=org_id,
            enabled=True,
            minimum_cents=1_000,
            amount_cents=amount,
            monthly_limit_cents=limit,
        )
    world.work()

    found = cli.json("reload", "list")
    assert found["total"] == 5
    rows = {each["org_id"]: each for each in found["results"]}
    assert {org_id: (each["code"], each["paused"], each["lifts_with"]) for org_id, each in rows.items()} == {
        1: ("authentication_required", True, "change"),
        2: ("stolen_card", True, "card"),
        3: ("insufficient_funds", True, "time"),
        4: ("monthly_limit", False, "month"),
        5: ("pace", False, "time"),
    }
    assert all(each["since"] for each in rows.values())
    assert {org_id for org_id, each in rows.items() if each["until"]} == {3, 4, 5}
    assert rows[1]["lifted_by"] == "another card, a setting that changes, or `metering reload resume`"
    assert rows[2]["lifted_by"] == "a different card, or `metering reload resume`"
    assert rows[4]["lifted_by"].endswith("or another limit")

    assert [
        each["org_id"] for each in cli.json("reload", "list", "--limit", "2", "--offset", "1")["results"]
    ] == [2, 3]
    shown = cli.run("reload", "list").stdout
    for text in ("stolen_card", "pace", "monthly_limit", "a different card"):
        assert text in shown


def test_settings_that_have_lifted_too_often_are_said_to_wait(cli: Cli, world: World) -> None:
    declined(world)
    for extra in range(1, 6):
        world.settings(minimum_cents=1_000 + extra)
        world.work()
    (row,) = cli.json("reload", "list")["results"]
    assert row["settings_lift_from"] is not None
    assert "a setting that changes after 20" in row["lifted_by"]


def test_resuming_lifts_a_pause_and_keeps_who_and_why(cli: Cli, world: World) -> None:
    method = declined(world, code="stolen_card")
    world.sandbox.mend_card(method)
    found = cli.json("reload", "resume", "1", "--reason", "the card was found")
    assert (found["org_id"], found["code"], len(found["attempts"])) == (1, "stolen_card", 1)
    assert cli.json("reload", "list")["results"] == []
    (row,) = world.rows("SELECT org_id, code, resumed_by, reason FROM reload_resumptions")
    assert tuple(row) == (1, "stolen_card", getpass.getuser(), "the card was found")

    assert cli.fail("reload", "resume", "1", "--reason", "again") == "The reloads of org 1 are not paused."
    assert cli.fail("reload", "resume", "7", "--reason", "x").startswith("ORG: there is no org 7;")
    assert cli.fail("reload", "resume", "1", "--reason", " ").startswith("reason: ")
    world.clock.at = system_clock()
    world.clock.move(seconds=6)
    world.reconcile()
    assert world.charged() == 1


def test_status_counts_what_the_list_names(cli: Cli, world: World) -> None:
    declined(world)
    assert cli.json("status")["reloads"]["orgs_paused"] == {"authentication_required": 1}
    assert (
        "its pause, authentication_required, is lifted."
        in cli.run("reload", "resume", "1", "--reason", "a try").stdout
    )
    assert cli.json("status")["reloads"]["orgs_paused"] == {}
    assert json.loads(cli.run("reload", "list", "--json").stdout)["total"] == 0
