"""What can't be measured is refused, with the remedy."""

from types import SimpleNamespace
from typing import cast

import pytest
import redis

from metering.runtime.names import STREAM
from metering.trials.bench.backlog import _wait_for_the_first
from metering.trials.bench.fixture import Fixture
from metering.trials.bench.rate import MeasuringError


def test_what_is_billed_in_one_go_is_no_rate(redis_client: redis.Redis) -> None:
    """The clock starts when the first batch is done: then something must be left."""
    fixture = cast("Fixture", SimpleNamespace(client=redis_client))
    with pytest.raises(MeasuringError, match="--events"):
        _wait_for_the_first(fixture, [], 3, lambda _: None)
    redis_client.xadd(STREAM, {"event": b"{}"})
    told: list[int] = []
    assert _wait_for_the_first(fixture, [], 3, told.append) == 1
    assert told == [2]
