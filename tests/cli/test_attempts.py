"""`metering attempt list`, and what `metering status` says of charges and reloads."""

import re
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
import redis

from db.attempts.reload_rule import write_pause
from db.postgres.engine import transaction
from metering.cli import status
from metering.rules.reloads import LiftsWith, Pause
from metering.runtime.clock import system_clock
from tests.cli.conftest import Cli
from tests.conftest import Database
from tests.payments.world import World, make_world


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation as of now, with org 1, without money or card."""
    with make_world(database, redis_client, at=system_clock()) as made:
        yield made


def reload_below(world: World, org_id: int, minimum_cents: int, limit_cents: int | None = None) -> None:
    world.settings(
        org_id=org_id,
        enabled=True,
        minimum_cents=minimum_cents,
        amount_cents=2_000,
        monthly_limit_cents=limit_cents,
    )


def test_attempts_are_listed_newest_first(cli: Cli, world: World) -> None:
    world.make_org(2)
    for org_id in (1, 2):
        world.save_card(org_id=org_id)
        world.clock.move(seconds=1)
        world.top_up(700 + org_id, org_id=org_id)
        world.clock.move(seconds=1)
        reload_below(world, org_id, 1_000)
    found = cli.json("attempt", "list")
    assert found["total"] == 4
    shown = [
        (each["org_id"], each["kind"], each["status"], each["amount_cents"]) for each in found["results"]
    ]
    assert shown == [
        (2, "auto_reload", "open", 2_000),
        (2, "top_up", "succeeded", 702),
        (1, "auto_reload", "open", 2_000),
        (1, "top_up", "succeeded", 701),
    ]
    assert str(UUID(found["results"][0]["id"])) == found["results"][0]["id"]
    assert found["results"][1]["payment_intent_id"].startswith("pi_")
    world.work()
    assert [each["status"] for each in cli.json("attempt", "list")["results"]] == ["succeeded"] * 4


def test_the_list_can_be_narrowed_and_paged(cli: Cli, world: World) -> None:
    world.make_org(2)
    world.save_card()
    world.top_up()
    world.clock.move(seconds=1)
    reload_below(world, 1, 10_000)
    assert cli.json("attempt", "list", "--org", "2") == {"results": [], "total": 0}
    (open_one,) = cli.json("attempt", "list", "--open", "--org", "1")["results"]
    assert (open_one["kind"], open_one["status"]) == ("auto_reload", "open")
    page = cli.json("attempt", "list", "--limit", "1", "--offset", "1")
    assert (len(page["results"]), page["total"]) == (1, 2)
    shown = cli.run("attempt", "list", "--limit", "1").stdout
    assert open_one["id"] in shown
    assert "20.00" in shown
    assert "1 of 2; --offset 1 shows the next." in shown
    assert cli.run("attempt", "list", "--org", "2").stdout == "There are no attempts.\n"
    assert cli.fail("attempt", "list", "--org", "0").startswith("org: ")


def test_status_before_anybody_has_a_card(cli: Cli) -> None:
    found = cli.json("status")
    assert found["attempts"] == {"open": {}, "oldest_open_seconds": None}
    assert found["reloads"] == {
        "orgs_enabled": 0,
        "orgs_paused": {},
        "orgs_waiting": {},
        "orgs_limited": 0,
        "least_left": [],
    }
    assert re.search(r"open attempts +│ +0 │", cli.run("status").stdout)


def test_status_shows_open_attempts_pauses_and_what_is_left_of_the_month(
    cli: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for org_id in range(2, 7):
        world.make_org(org_id)
    for org_id in range(1, 7):
        world.save_card(org_id=org_id)
    reload_below(world, 1, 1, limit_cents=3_000)
    world.work()  # org 1 has 20.00 USD, and 10.00 left of its month
    world.adjust(-2_000)  # which isn't enough for another
    reload_below(world, 2, 1, limit_cents=10_000)  # its charge is under way
    reload_below(world, 3, 0, limit_cents=1_000)  # never fits
    declined = Pause("insufficient_funds", LiftsWith.TIME, world.clock(), world.clock() + timedelta(hours=1))
    stolen = Pause("stolen_card", LiftsWith.CARD, world.clock())
    over = Pause(
        "insufficient_funds",
        LiftsWith.TIME,
        world.clock() - timedelta(hours=2),
        world.clock() - timedelta(hours=1),
    )
    for org_id, pause in ((4, declined), (5, stolen), (6, over)):
        world.adjust(500, org_id=org_id)
        reload_below(world, org_id, 0)
        with transaction(world.engine) as connection:
            write_pause(connection, org_id, pause)
    found = cli.json("status")
    assert found["attempts"]["open"] == {"auto_reload": 1}
    assert 0 <= found["attempts"]["oldest_open_seconds"] < 60
    reloads = found["reloads"]
    assert reloads["orgs_enabled"] == 6
    assert reloads["orgs_paused"] == {"insufficient_funds": 1, "stolen_card": 1}
    assert reloads["orgs_waiting"] == {"monthly_limit": 2}
    assert reloads["orgs_limited"] == 3
    least_left = [
        (each["org_id"], each["monthly_limit_cents"], each["committed_cents"], each["left_cents"])
        for each in reloads["least_left"]
    ]
    assert least_left == [(1, 3_000, 2_000, 1_000), (3, 1_000, 0, 1_000), (2, 10_000, 2_000, 8_000)]

    monkeypatch.setattr(status, "MAX_LIMITED", 2)
    shown = cli.run("status").stdout
    assert re.search(r"auto_reload +│ +1 │", shown)
    assert re.search(r"stolen_card +│ +1 │", shown)
    assert re.search(r"monthly_limit +│ +2 │", shown)
    assert re.search(r"│ +1 │ +30.00 │ +20.00 │ +10.00 │", shown)
    assert "2 of 3 with a limit: those that have least left." in shown
    assert len(cli.json("status")["reloads"]["least_left"]) == 2


def test_last_months_reloads_and_top_ups_leave_the_month_alone(cli: Cli, world: World) -> None:
    now = system_clock()
    world.clock.at = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(milliseconds=1)
    world.save_card()
    reload_below(world, 1, 1, limit_cents=3_000)
    world.work()
    world.clock.at = now
    world.top_up(2_500)
    (left,) = cli.json("status")["reloads"]["least_left"]
    assert (left["committed_cents"], left["left_cents"]) == (0, 3_000)


def test_a_limit_lowered_below_what_is_taken_leaves_nothing(cli: Cli, world: World) -> None:
    world.save_card()
    reload_below(world, 1, 1, limit_cents=3_000)
    world.work()
    world.settings(monthly_limit_cents=500)
    (left,) = cli.json("status")["reloads"]["least_left"]
    assert (left["committed_cents"], left["left_cents"]) == (2_000, 0)
