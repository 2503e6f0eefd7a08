"""A clock that can be set forward, for running processes too."""

import itertools
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from metering.runtime.clock import ENVIRONMENT_VARIABLE, system_clock
from metering.trials.chaos.calendar import BEFORE_THE_MONTH_ENDS, HALF_A_MONTH_DAY, Calendar

NEAR = timedelta(seconds=60)


def _clock_of_a_process(environment: dict[str, str]) -> datetime:
    code = "from metering.runtime.clock import system_clock; print(system_clock().isoformat())"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return datetime.fromisoformat(told.stdout.strip())


def test_processes_that_are_told_of_the_file_follow_it_and_others_dont(tmp_path: Path) -> None:
    calendar = Calendar(tmp_path / "clock")
    told = {ENVIRONMENT_VARIABLE: str(calendar.path)}
    assert abs(_clock_of_a_process(told) - datetime.now(UTC)) < NEAR
    calendar.advance(timedelta(days=40))
    assert abs(_clock_of_a_process(told) - datetime.now(UTC) - timedelta(days=40)) < NEAR
    assert abs(_clock_of_a_process({}) - datetime.now(UTC)) < NEAR
    assert abs(system_clock() - datetime.now(UTC)) < NEAR


def test_two_jumps_lead_over_the_ends_of_months_one_after_the_other(tmp_path: Path) -> None:
    calendar = Calendar(tmp_path / "clock")
    seen = [calendar.clock(), *(calendar.jump() for _ in range(8))]
    assert seen == sorted(seen)
    ends = [
        at for at in seen[1:] if (at + BEFORE_THE_MONTH_ENDS).month != at.month or at.day == HALF_A_MONTH_DAY
    ]
    assert len(ends) == 8
    assert all(later - at < timedelta(days=18) for at, later in itertools.pairwise(seen[1:]))
    over = [at for at in seen[1:] if (at + BEFORE_THE_MONTH_ENDS).month != at.month]
    assert len(over) >= 3


def test_one_role_can_go_astray_while_the_others_go_on(tmp_path: Path) -> None:
    calendar = Calendar(tmp_path / "clock")
    mine, others = ({ENVIRONMENT_VARIABLE: str(calendar.path_of(role))} for role in ("api", "jobs-1"))
    calendar.set_astray("api", timedelta(hours=-1))
    calendar.advance(timedelta(days=40))
    right = datetime.now(UTC) + timedelta(days=40)
    assert abs(_clock_of_a_process(mine) - right + timedelta(hours=1)) < NEAR
    assert abs(_clock_of_a_process(others) - right) < NEAR
    calendar.set_right()
    assert abs(_clock_of_a_process(mine) - right) < NEAR
