"""README.md's first use runs as it stands there, and docs/reference/http-api.md says what is so."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

import httpx
import pytest

from metering.api.bodies import MAX_BODY_BYTES
from metering.api.lanes import MAX_WAITING_PER_ORG, PROVIDER_THREADS_PER_ORG
from metering.api.problems import INTERNAL_ERROR, TABLE
from metering.rules.looking import TOP_UP_WINDOW
from tests.cli.conftest import Cli
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text()
PAGE: Final = (ROOT / "docs" / "reference" / "http-api.md").read_text()
OTHERS: Final = {
    (402, "card_declined"),
    (402, "authentication_required"),
    (402, "balance_exhausted"),
    (405, "method_not_allowed"),
    (500, INTERNAL_ERROR[1]),
}


def test_every_error_that_customers_may_meet_is_there() -> None:
    rows = re.findall(r"^\| ([0-9]+) \| ([a-z_`, ]+) \|", PAGE, re.MULTILINE)
    named = {(int(status), code) for status, codes in rows for code in re.findall("[a-z_]+", codes)}
    known = {(int(status), code) for status, code in TABLE.values()} | OTHERS
    assert named == known - {(400, "invalid_signature")}  # Stripe's alone


def test_numbers_are_the_programs_own() -> None:
    assert f"longer than {MAX_BODY_BYTES // 1024} KiB" in PAGE
    assert f"At most {PROVIDER_THREADS_PER_ORG} requests" in PAGE
    assert f"beyond {MAX_WAITING_PER_ORG} are told" in PAGE
    assert f"for {int(TOP_UP_WINDOW.total_seconds()) // 3600} hours" in PAGE


def test_every_link_leads_somewhere() -> None:
    for page, folder in [(README, ROOT), (PAGE, ROOT / "docs" / "reference")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            assert (folder / target).exists(), target


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_first_use_runs_as_it_stands_there(data_dir: Path) -> None:
    script = README.split("```sh\n")[2].split("```")[0]
    cli = Cli({"METERING_DATA_DIR": str(data_dir), "METERING_HTTP_PORT": "0"})
    up = cli.start("up")
    try:
        assert up.stdout is not None
        shown = ""
        while "metering status" not in shown:
            line = up.stdout.readline().decode()
            assert line, shown
            shown += line
        api, stand_in = (re.findall(rf"{name} .*?(http://[\d.:]+)", shown)[0] for name in ("API", "Stripe"))
        wait_until(lambda: answers(f"{api}/readyz"), limit_s=60)
        script = re.sub(r"API=\S+ STRIPE=\S+", f"API={api} STRIPE={stand_in}", script).replace(
            "$PWD", str(ROOT)
        )
        environment = {**cli.environment(), "PWD": str(ROOT)}
        done = subprocess.run(
            ["/bin/sh", "-e"],
            input=script,
            env=environment,
            cwd=os.fspath(ROOT),
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"status":"succeeded"' in done.stdout
        assert '{"allowed":true,"balance_cents":1000,"max_duration_seconds":7500}' in done.stdout
        wait_until(lambda: cli.json("org", "list")["results"][0]["balance_cents"] == 984, limit_s=60)
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=60)
