"""README.md's first use and the first hour run as they stand there."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.cli.conftest import Cli
from tests.docs.pages import ROOT, page
from tests.waiting import wait_until

README: Final = (ROOT / "README.md").read_text(encoding="utf-8").split("```sh\n")[3].split("```")[0]
HOUR: Final = "".join(
    re.findall(r"<!-- tested: first hour -->\n```sh\n(.*?)```", page("tutorials/first-hour.md"), re.DOTALL)
)
# Where a page waits some seconds, a busy machine may take longer.
SLEEP: Final = """
sleep() {
  until metering status --json | python -c '
import json, sys
now = json.load(sys.stdin)
sys.exit(bool(now["stream"]["lag"] or now["stream"]["pending"] or now["attempts"]["open"]))
'; do command sleep 0.2; done
}
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def up(data_dir: Path) -> Iterator[tuple[Cli, str]]:
    """`metering up`, and where its API is: any free port, so that tests may run side by side."""
    cli = Cli({"METERING_DATA_DIR": str(data_dir), "METERING_HTTP_PORT": "0"})
    process = cli.start("up")
    try:
        assert process.stdout is not None
        shown = ""
        while "metering status" not in shown:
            line = process.stdout.readline().decode()
            assert line, shown
            shown += line
        (api,) = re.findall(r"API .*?(http://[\d.:]+),", shown)
        wait_until(lambda: answers(f"{api}/readyz"), limit_s=60)
        yield cli, api
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def run(script: str, cli: Cli, api: str) -> str:
    """Run a page's lines in a shell, as somebody types them; give what they print."""
    assert script.count("API=http://127.0.0.1:8000") == 1
    done = subprocess.run(
        ["/bin/sh", "-e"],
        input=SLEEP + script.replace("API=http://127.0.0.1:8000", f"API={api}"),
        env={
            **cli.environment(),
            "PWD": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        cwd=os.fspath(ROOT),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readmes_first_use(up: tuple[Cli, str]) -> None:
    cli, api = up
    said = run(README, cli, api)
    assert '"status":"succeeded"' in said
    assert '{"allowed":true,"balance_cents":1000,"max_duration_seconds":7500}' in said
    wait_until(lambda: cli.json("org", "list")["results"][0]["balance_cents"] == 984, limit_s=60)


def test_the_first_hour(up: tuple[Cli, str]) -> None:
    said = run(HOUR, *up)
    assert said.count("1 event pushed.") == 4
    first, second, third = re.findall(r'"payment_intent_id":"(pi_\w+)"', said)
    assert first == second != third
    assert '{"allowed":true,"balance_cents":500,"max_duration_seconds":3720}' in said
    assert said.count('"description":"Call billing: 2 minutes × $0.08"') == 1
    assert '"code":"balance_exhausted"' in said
    assert '"description":"Call billing: 1 minute × $0.10"' in said
    assert '"balance_cents":414,' in said
    assert '"description":"Auto-reload","amount_cents":2000' in said
    assert "every invariant holds" in said
