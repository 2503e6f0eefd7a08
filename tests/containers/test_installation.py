"""docker-compose.yml through a life, on a real Docker Engine: started, stopped, upgraded, backed up and restored."""

import json
import re
import time
from datetime import UTC, datetime
from typing import Final

import pytest

from metering import __version__
from tests.containers.docker import CHECKOUT, IMAGE, Installation, commands, run, wait_until
from tests.deploy.composed import ROLES, compose_file

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1_200), pytest.mark.usefixtures("api_key")]

WATCHED_S: Final = 40.0
"""A worker counts as dead after 10 s."""


def test_all_is_healthy_after_the_first_start(installation: Installation) -> None:
    installation.start()
    found = {}
    for line in installation.compose("ps", "--all", "--format", "{{json .}}").splitlines():
        container = json.loads(line)
        found[container["Service"]] = container["Health"] or f"ended with {container['ExitCode']}"
    services = {name for name, service in compose_file()["services"].items() if "profiles" not in service}
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
    installation.wait_until_billed(before, 1)
    gate = installation.ask_api("/v1/gate/1?direction=outbound&tier=bolt", api_key)
    assert gate["allowed"] is True
    wait_until(lambda: installation.meters_asking() == 1, "one meter asking for calls")


def test_calls_wait_while_meters_stop_and_over_down_and_up(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    installation.compose("stop", "meter")
    installation.push(range(501, 511))
    installation.compose("down")
    installation.start(meters=2)
    installation.wait_until_billed(before, 10)


def test_an_upgrade_as_documented(installation: Installation) -> None:
    """To a version whose Valkey knows one user more: what is built anew is also started anew."""
    installation.start()
    before = installation.balance_cents()
    pull, *upgrade = commands("upgrade", "Upgrade")
    assert pull == "git pull"
    users = CHECKOUT / "deploy" / "valkey" / "users.sh"
    users.write_text(users.read_text() + 'echo "user newcomer on nopass +ping"\n')
    users.chmod(0o600)
    installation.documented(upgrade)
    listed = installation.compose("exec", "-T", "valkey", "valkey-cli", "ACL", "USERS")
    assert "newcomer" in listed.split()
    installation.push([601])
    installation.wait_until_billed(before, 1)


def test_a_backup_and_its_restoring_as_documented(installation: Installation) -> None:
    installation.start()
    before = installation.balance_cents()
    installation.documented(commands("backup-and-restore", "Back up"))
    installation.documented(commands("backup-and-restore", "Restore"))
    installation.start()  # as the page goes on, once orgs and prices are back: here the backup knows them all
    assert installation.balance_cents() == before
    installation.push([701])
    installation.wait_until_billed(before, 1)


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
