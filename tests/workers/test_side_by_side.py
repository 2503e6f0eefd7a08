"""Several meters share the stream, and a call that comes to each of them is billed once."""

import random

import pytest

from tests.workers.calls import assert_billed, make_calls
from tests.workers.processes import Site, wait_until


@pytest.mark.long
def test_three_meters_and_every_event_three_times(site: Site) -> None:
    events = make_calls(2_500, seed=31, broken=False) * 3
    random.Random(31).shuffle(events)
    meters = [site.start(name) for name in ("a", "b", "c")]
    wait_until(lambda: all(meter.said("meter is ready") for meter in meters), "getting ready")
    site.push(events)
    site.wait_until_drained()
    assert_billed(site.engine, site.client, events)
    assert all(meter.said("batch") for meter in meters)
