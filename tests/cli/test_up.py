"""`metering up`: everything on one machine, and the first steps that it proposes, run as they are printed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis

from metering.console.first_steps import first_steps
from metering.console.stripe_access import StripeAccess
from tests.cli.conftest import Cli
from tests.cli.test_roles import end, free_ports, meters
from tests.cli.waiting import wait_until

LAST_STEP = "/v1/billing/transactions"


@contextmanager
def up(cli: Cli, *arguments: str, cwd: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str, list[str]]]:
    """`metering up` once it runs, what it shows, and the commands that it proposes; killed at the end if it runs still."""
    process = cli.start("up", *arguments, cwd=cwd)
    try:
        assert process.stdout is not None
        panel = ""
        while "In another terminal" not in panel:
            line = process.stdout.readline().decode()
            assert line, process.communicate()
            panel += line
        steps = [process.stdout.readline().decode()]
        while LAST_STEP not in steps[-1]:
            steps.append(process.stdout.readline().decode())
        yield process, panel, steps
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_up_on_embedded_servers_until_ctrl_c(data_dir: Path, tmp_path: Path) -> None:
    for package in ("db", "metering"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported from the directory')")
    port = free_ports(6)
    cli = Cli(
        {
            "METERING_DATA_DIR": str(data_dir),
            "METERING_METRICS_PORT": str(port),
            "METERING_HTTP_PORT": str(port + 4),
            "METERING_REDIS_PORT": str(port + 5),
        }
    )
    with up(cli, "--meters", "2", cwd=tmp_path) as (process, panel, steps):
        assert f"{data_dir}/run" in panel
        assert "api, 2 meters, jobs" in panel
        assert (
            f"127.0.0.1, ports {port}, {port + 1} (2 meters), {port + 2} (jobs) and {port + 3} (api)" in panel
        )
        url = f"http://127.0.0.1:{port + 4}"
        assert f"{url}, described at {url}/docs" in panel
        assert "NOT STRIPE: a stand-in at http://127.0.0.1:" in panel
        assert f"127.0.0.1:{port + 5} for whoever" in panel
        with redis.Redis("127.0.0.1", port + 5) as by_port:
            assert by_port.ping()

        wait_until(lambda: answers(f"{url}/readyz") and len(meters(cli)) == 2, "the roles' start")
        ran = subprocess.run(
            ["/bin/sh", "-e"],
            input="".join(steps).encode(),
            env=cli.environment()
            | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, b""), ran.stdout + ran.stderr
        assert b'"status":"succeeded"' in ran.stdout.replace(b" ", b"")
        wait_until(lambda: cli.json("status")["balance_cents"] == 984, "billing")
        (attempt,) = cli.json("attempt", "list")["results"]
        assert (attempt["kind"], attempt["status"], attempt["amount_cents"]) == ("top_up", "succeeded", 1_000)
        assert cli.json("audit")["passed"]

        status, _, errors = end(process, signal.SIGINT)
    assert status == 0, errors
    assert errors.count('"meter has stopped"') == 2
    assert "starting it again" not in errors
    assert cli.fail("status").startswith("Nothing runs under ")


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_port_that_somebody_has_is_told_before_anything_starts(data_dir: Path) -> None:
    cli = Cli({"METERING_DATA_DIR": str(data_dir)})
    taken = Cli({**cli.settings, "METERING_HTTP_HOST": "192.0.2.1"})  # no address of this machine
    assert taken.fail("up").startswith("METERING_HTTP_PORT: 192.0.2.1:8000 can't be served")
    assert not data_dir.exists()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = Cli({**cli.settings, "METERING_HTTP_PORT": "0", "METERING_REDIS_PORT": str(port)})
        assert taken.fail("up").startswith(f"METERING_REDIS_PORT: Valkey can't listen on 127.0.0.1:{port}")
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"STRIPE_API_KEY": "sk_live_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}, "STRIPE_API_KEY is a live key"),
        (
            {"STRIPE_WEBHOOK_SECRET": "whsec_x"},
            "STRIPE_API_KEY is missing, though STRIPE_WEBHOOK_SECRET is set",
        ),
        ({"METERING_REDIS_PORT": "0"}, "METERING_REDIS_PORT Input should be greater than or equal to 1"),
        (
            {"METERING_REDIS_PORT": "6379", "METERING_REDIS_URL": "redis://127.0.0.1/0"},
            "METERING_REDIS_PORT is the embedded Valkey's",
        ),
        ({"METERING_RETURN_URL": "app.example.com"}, "METERING_RETURN_URL must be an address"),
        ({"STRIPE_API_KEY": "nonsense"}, "STRIPE_API_KEY must be a secret key"),
    ],
)
@pytest.mark.parametrize("command", ["up", "jobs", "api", "demo", "stripe-sandbox"])
def test_settings_of_stripes_that_can_not_be_are_told_before_anything_starts(
    data_dir: Path, command: str, settings: dict[str, str], sentence: str
) -> None:
    cli = Cli({"METERING_DATA_DIR": str(data_dir), "METERING_HTTP_PORT": "0", **settings})
    assert cli.fail(command).startswith(sentence)
    assert not data_dir.exists()


@pytest.mark.parametrize("command", ["up", "jobs", "api"])
@pytest.mark.parametrize("missing", ["STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"])
def test_beside_another_database_nothing_of_stripes_may_be_missing(
    data_dir: Path, command: str, missing: str
) -> None:
    settings = {"STRIPE_API_KEY": "sk_test_x", "STRIPE_WEBHOOK_SECRET": "whsec_x"}
    cli = Cli(
        {
            **{name: value for name, value in settings.items() if name != missing},
            "METERING_DATA_DIR": str(data_dir),
            "METERING_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere",
            "METERING_HTTP_PORT": "0",
        }
    )
    assert cli.fail(command).startswith(f"{missing} is missing: set it to")
    assert not data_dir.exists()


def test_with_a_live_key_nobody_is_charged_to_try_things() -> None:
    now = datetime(2026, 4, 20, 18, 25, tzinfo=UTC)
    live = first_steps(now, "http://api", StripeAccess("sk_live_x", ("whsec_x",), None))
    test = first_steps(now, "http://api", StripeAccess("sk_test_x", ("whsec_x",), None))
    assert not any("top-up" in step for step in live)
    assert any(step.startswith("metering adjust ") for step in live)
    assert any("https://api.stripe.com/v1/setup_intents/$SETUP/confirm" in step for step in test)
    assert not any(
        "@" in step.replace('"$@"', "") for step in (*live, *test)
    )  # nothing is left to be filled in
