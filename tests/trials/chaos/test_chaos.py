"""The whole system under faults of every main kind, for half a minute: what `make chaos` does for longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metering.trials.chaos.schedule import Fault


@pytest.mark.long
@pytest.mark.timeout(420)
def test_nothing_is_lost_or_taken_twice_whatever_is_killed_cut_off_or_restored(tmp_path: Path) -> None:
    own = ("METERING_", "STRIPE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    arguments = ["chaos", "--minutes", "0.6", "--seed", "7", "--rate", "25", "--orgs", "6", "--json"]
    run = subprocess.run(
        [sys.executable, "-P", "-m", "metering", *arguments],
        env=environment | {"METERING_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert run.stdout, run.stderr
    told = json.loads(run.stdout)
    verdict = told["verdict"]
    assert verdict["problems"] == [], run.stderr
    assert run.returncode == 0
    assert told["exact"]
    assert verdict["billed_once"] == verdict["calls"] > 300
    assert verdict["credits"] == verdict["charges"] > 5
    kinds = {Fault[name.upper()] for name in told["faults"]}
    assert {Fault.KILL, Fault.POSTGRES_RESTORED, Fault.VALKEY_EMPTIED, Fault.CLOCK} <= kinds
    assert {Fault.CLOCK_ASTRAY, Fault.METADATA_EDITED, Fault.CUSTOMER_DELETED} <= kinds
    assert {Fault.PAID_IN_DASHBOARD, Fault.SETTLEMENT} <= kinds
    assert verdict["by_hand"] > 0
    assert not list(tmp_path.iterdir()), "a run that is exact leaves nothing behind"
