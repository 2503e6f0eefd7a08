"""`metering meter`, and the supervisor that `metering up` keeps roles running with."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest

from metering.console import roles
from metering.console.roles import JOBS, STRIPE_SANDBOX, Supervisor, meter_roles
from tests.cli.conftest import Cli
from tests.cli.waiting import wait_until
from tests.conftest import Database
from tests.stripe_away import NO_STRIPE

EVENT = (
    b'{"call_id":%d,"org_id":1,"tier":"bolt","direction":"outbound","duration_seconds":75,'
    b'"ended_at":"2026-04-20T18:25:06.201Z"}'
)


def end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal, and give status, output and errors."""
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output.decode(), errors.decode()


def meters(cli: Cli) -> list[str]:
    return [meter["name"] for meter in cli.json("status")["meters"]]


def prepare(cli: Cli) -> None:
    cli.run("org", "create", "Acme", "--id", "1")
    cli.run("tier", "set", "bolt", "0.08")


def balance_cents(cli: Cli) -> int:
    return int(cli.json("status")["balance_cents"])


def test_a_meter_bills_until_it_is_told_to_stop(cli: Cli, tmp_path: Path) -> None:
    prepare(cli)
    (tmp_path / "events").write_bytes(b"\n".join(EVENT % call_id for call_id in range(1, 11)))
    cli.run("push", str(tmp_path / "events"))
    process = cli.start("meter", "--name", "tests-1", "--verbose")
    wait_until(lambda: balance_cents(cli) == -160, "billing")
    assert meters(cli) == ["tests-1"]
    status, _, errors = end(process, signal.SIGTERM)
    assert status == 0, errors
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [line["event"] for line in lines[-2:]] == ["meter has stopped", "summary"]
    assert (lines[-1]["events"], lines[-1]["debited_cents"]) == ({"debited": 10}, 160)
    assert sum(line["event"] == "call" and line["outcome"] == "debited" for line in lines) == 10
    assert meters(cli) == []


def test_a_meter_waits_for_postgres(cli: Cli) -> None:
    settings = {**cli.settings, "METERING_DATABASE_URL": "postgresql://app:s3cr3t@127.0.0.1:1/metering"}
    process = Cli(settings).start("meter")
    assert process.stderr is not None
    first = process.stderr.readline().decode()
    assert json.loads(first)["event"] == "waiting for Postgres"
    status, _, errors = end(process, signal.SIGINT)
    assert status == 0
    assert "s3cr3t" not in first + errors


def test_a_meter_refuses_another_schema(empty_database: Database, redis_url: str) -> None:
    urls = {"METERING_DATABASE_URL": empty_database.owner_url, "METERING_REDIS_URL": redis_url}
    cli = Cli({**urls, **NO_STRIPE, "METERING_HTTP_PORT": "0"})
    assert cli.fail("meter").endswith("run `metering migrate`.")
    assert cli.fail("up").endswith("run `metering migrate`.")


@pytest.mark.long
def test_a_supervisor_starts_again_what_dies_and_ends_what_hangs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in cli.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(roles, "STOP_LIMIT_S", 0.5)
    said: list[str] = []
    (role,) = meter_roles(1)
    with Supervisor([role], say=said.append, log_path=tmp_path / "log") as supervisor:
        wait_until(lambda: meters(cli), "the meter's start")
        first = supervisor.pids()[role.name]
        assert os.getsid(first) == first
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: supervisor.pids().get(role.name, first) != first, "the meter's second start")
        assert len(said) == 1
        assert said[0].startswith(f"{role.name} was killed by signal 9; starting it again in 0.")
        second = supervisor.pids()[role.name]
        wait_until(lambda: (tmp_path / "log").read_text().count("meter is ready") == 2, "the second meter")
        os.kill(second, signal.SIGSTOP)
    assert said[1:] == [f"{role.name} did not stop within 0 s and is killed; nothing is lost by that."]
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody has."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + number):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return int(first)


def serves_metrics(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return b"metering_" in answer.read()
    except OSError:
        return False


@pytest.mark.long
def test_each_role_has_a_metrics_port_of_its_own(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = free_ports(3)
    for name, value in {**cli.settings, "METERING_METRICS_PORT": str(first)}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with Supervisor([*meter_roles(2), JOBS], say=said.append, log_path=tmp_path / "log"):
        wait_until(lambda: all(map(serves_metrics, range(first, first + 3))), "serving metrics on each port")
    assert said == []


def test_a_metrics_port_leaves_room_for_every_role(
    offline: Cli, monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    cli = Cli({**offline.settings, "METERING_METRICS_PORT": "65535", "METERING_HTTP_PORT": "0"})
    assert cli.fail("up") == (
        "METERING_METRICS_PORT must be at most 65533 here: 3 roles take as many ports from it on,"
        " and 65535 is the last there is."
    )
    assert not data_dir.exists()
    for setting, ports in (("65533", [65_533, 65_534, 65_535]), ("0", [0, 0, 0]), ("", [0, 0, 0])):
        monkeypatch.setenv("METERING_METRICS_PORT", setting)
        assert roles.metrics_ports([STRIPE_SANDBOX, *meter_roles(2), JOBS]) == [0, *ports]


SUPERVISE = """
import time
from metering.console.roles import Supervisor, meter_roles
with Supervisor(meter_roles(2), say=print):
    time.sleep(60)
"""


@pytest.mark.long
def test_a_killed_supervisor_leaves_no_roles_behind(cli: Cli) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SUPERVISE], env=cli.environment(), stderr=subprocess.PIPE
    )
    wait_until(lambda: len(meters(cli)) == 2, "the meters' start")
    process.kill()
    _, errors = process.communicate(
        timeout=60
    )  # ends with the last that holds standard error: the meters do too
    assert errors.decode().count('"meter has stopped"') == 2
    assert meters(cli) == []
