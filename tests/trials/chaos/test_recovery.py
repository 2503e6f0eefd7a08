"""The watch over how long it takes until all is right again."""

from typing import Any
from unittest.mock import MagicMock, patch

import psycopg
import pytest
import redis
from sqlalchemy.exc import OperationalError

from metering.trials.chaos import recovery
from metering.trials.chaos.injector import InjectedFault
from metering.trials.chaos.recovery import Observed, Recovery
from metering.trials.chaos.schedule import Fault, ScheduledFault
from tests.waiting import wait_until


@pytest.mark.parametrize(
    "away",
    [
        psycopg.OperationalError("killed"),
        OperationalError("", {}, Exception()),
        redis.ConnectionError("killed"),
    ],
)
def test_it_goes_on_though_a_server_is_killed_while_it_looks(away: Exception) -> None:
    struck = InjectedFault(ScheduledFault(0.0, Fault.KILL, "api", 0.0, 1), 0.0, 1.0)
    looked = []

    def look(_: Recovery, marks: list[Any]) -> list[Any]:
        looked.append(marks)
        if len(looked) == 1:
            raise away
        return marks

    observed: Any = MagicMock(spec=Observed, client=redis.Redis())
    with patch.object(Recovery, "_look", look), patch.object(recovery, "POLL_EVERY_S", 0.01):
        watch = Recovery(observed, list)
        watch._marks.append(recovery._Mark(struck, 1.0, (0, 0)))
        watch.start()
        wait_until(lambda: not watch.waiting or not watch.is_alive(), limit_s=10)
        watch.stop()
    assert [each.struck for each in watch.recovered] == [struck]
