"""docker-compose.yml through a life, on a real Docker Engine: started, scaled, killed, upgraded, backed up and restored."""

import json
import re
import time
from datetime import UTC, datetime
from typing import Final

import pytest

from metering import __version__
from tests.containers.docker import IMAGE, Installation, run, wait_until
from tests.deploy.composed import ROLES, compose_file
from tests.docs.pages import page, section

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1_200), pytest.mark.usefixtures("api_key")]

CALL_CENTS: Final = 16
STOP_LIMIT_S: Final = 20.0
WATCHED_S: Final = 40.0
"""A worker counts as dead after 10 s."""


def commands(name: str, heading: str) -> list[str]:
    """The first block of commands under a heading of a how-to page."""
    block = re.findall(r"(?:^    .*\n)+", section(page(f"how-to/{name}.md"), heading), re.MULTILINE)[0]
    return [line.strip() for line in block.splitlines()]


def billed(installation: Installation, before_cents: int, calls: int) -> None:
    """Wait until so many calls are billed, and not one more."""
    expected = before_cents - calls * CALL_CENTS
    wait_until(lambda: installation.balance_cents() <= expected, f"{calls} calls being billed")
    assert installation.balance_cents() == expected


def test_all_is_healthy_after_the_first_start(installation: Installation) -> None:
    installation.start()
    found = {}
    for line in installation.compose("ps", "--all", "--format", "{{json .}}").splitlines():
        container = json.loads(line)
        found[container["Service"]] = container["Health"] or f"ended with {container['ExitCode']}"
    services = set(compose_file()["services"]) - {"operator"}
    assert found == dict.fromkeys(services, "healthy") | {"migrate": "ended with 0"}


def test_program_image_and_api_tell_one_version(installation: Installation) -> None:
    installation.start()
    label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    assert run("docker", "image", "inspect", IMAGE, "--format", label).strip() == __version__
    assert installation.operator("--version") == f"metering {__version__}\n"
    assert installation.ask_api("/openapi.json")["info"]["version"] == __version__


def test_a_call_is_billed_and_the_gate_opens_by_the_published_ports(
    installation: Installation, api_key: str
) -> None:
    installation.start()
    before = installation.balance_cents()
    installation.push([1])
    billed(installation, before, 1)
    gate = installation.ask_api("/v1/gate/1?direction=outbound&tier=bolt", api_key)
    assert gate["allowed"] is True
    assert "1 meter" in installation.operator("status")


def test_a_killed_meter_loses_nothing_and_comes_back_by_itself(installation: Installation) -> None:
    installation.start(meters=3)
    wait_until(lambda: "3 meters" in installation.operator("status"), "three meters being listed")
    before = installation.balance_cents()
    meter = installation.container("meter", 2)
    installation.kill(meter)
    installation.push(range(101, 301))
    billed(installation, before, 200)
    wait_until(
        lambda: installation.state(meter, "{{.State.Running}} {{.RestartCount}}") == "true 1",
        "the meter's coming back",
    )


def test_killed_servers_come_back_by_themselves(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    for server in ("valkey", "postgres"):
        container = installation.container(server)
        installation.kill(container)
        wait_until(
            lambda container=container: (  # type: ignore[misc]
                installation.state(container, "{{.State.Health.Status}} {{.RestartCount}}") == "healthy 1"
            ),
            f"{server}'s coming back",
        )
    installation.start()
    installation.push([401])
    billed(installation, before, 1)


def test_calls_wait_while_meters_stop_and_over_down_and_up(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    installation.compose("stop", "meter")
    installation.push(range(501, 511))
    installation.compose("down")
    installation.start(meters=2)
    billed(installation, before, 10)


def test_an_upgrade_as_documented(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    pull, *upgrade = commands("upgrade", "Upgrade")
    assert pull == "git pull"
    installation.documented(upgrade)
    installation.push([601])
    billed(installation, before, 1)


def test_a_backup_and_its_restoring_as_documented(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    installation.documented(commands("backup-and-restore", "Back up"))
    installation.documented(commands("backup-and-restore", "Restore"))
    installation.start()  # as the page goes on, once orgs and prices are back: here the backup knows them all
    assert installation.balance_cents() == before
    installation.push([701])
    billed(installation, before, 1)


def test_no_role_logs_a_failure_after_a_worker_has_gone(installation: Installation) -> None:
    installation.start()
    installation.kill(installation.container("jobs"))
    installation.start()
    since = datetime.now(UTC).isoformat()
    time.sleep(WATCHED_S)  # that nothing happens can only be waited for
    logged = installation.logs(*ROLES, since=since)
    failure = r"Traceback|\"level\": ?\"(critical|error)\"|NOPERM|no permissions|ACL failure"
    assert [line for line in logged.splitlines() if re.search(failure, line)] == []
    denied = ("valkey-cli", "--no-raw", "ACL", "LOG")
    assert installation.compose("exec", "-T", "valkey", *denied).strip() == "(empty array)"
    installation.operator("audit")


def test_all_ends_soon_after_it_is_told_to(installation: Installation) -> None:
    installation.start()
    began_s = time.monotonic()
    installation.compose("stop")
    assert time.monotonic() - began_s <= STOP_LIMIT_S
    statuses = {
        role: installation.state(installation.container(role), "{{.State.ExitCode}}") for role in ROLES
    }
    assert statuses == dict.fromkeys(ROLES, "0")
