"""A meter that dies, wherever it is, costs nobody a cent: the next one bills what it left, once."""

import random
import signal
import time

import pytest

from metering.runtime.crashpoints import CrashPoint
from tests.workers.calls import assert_billed, assert_none_is_held, hold_all, make_calls
from tests.workers.processes import Site, wait_until
from workers.stream import backlog

METER_POINTS = [point for point in CrashPoint if point.startswith(("meter.", "ledger."))]
AROUND_THE_COMMIT = {CrashPoint("meter.before_commit"), CrashPoint("meter.after_commit")}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(each, marks=() if each in AROUND_THE_COMMIT else pytest.mark.long)
        for each in METER_POINTS
    ],
)
def test_killed_at_a_crash_point(site: Site, point: CrashPoint) -> None:
    events = make_calls(2_500, seed=7)  # five batches
    hold_all(site.client, events)
    site.push(events)
    # The first time that meter.before_commit is reached is when prices are loaded; the others are a batch's.
    for occurrence in (1, 3):
        meter = site.start("m", crash_point=f"{point}:{occurrence}")
        assert meter.wait() == -signal.SIGKILL, meter.log_path.read_text()
    assert backlog(site.client).length > 0
    # Nothing is found as abandoned: what it had in hand it looks for itself.
    site.drain("m", abandoned_after_ms=3_600_000)
    assert_billed(site.engine, site.client, events)
    assert_none_is_held(site.client)


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random(site: Site, seed: int) -> None:
    chance = random.Random(seed)
    events = make_calls(50_000, seed=seed, conflicts=False)
    site.push(events)
    meters = [site.start("a"), site.start("b")]

    def come_down_to(left: int) -> None:
        wait_until(lambda: backlog(site.client).length <= left, f"coming down to {left} events")

    for left in sorted(chance.sample(range(1_000, 49_000), 8), reverse=True):
        come_down_to(left)
        time.sleep(chance.uniform(0, 0.05))  # anywhere in a batch
        wait_until(lambda: any(meter.said("batch") for meter in meters), "having work to kill")
        working = [meter for meter in meters if meter.said("batch")]
        for victim in working if chance.random() < 0.3 else [chance.choice(working)]:
            victim.kill()
            # Under its old name it finds what it had in hand; under a new one that is abandoned, and found in time.
            name = victim.name if chance.random() < 0.7 else f"{victim.name}-again"
            meters[meters.index(victim)] = site.start(name)
    site.wait_until_drained(limit_s=120)
    assert_billed(site.engine, site.client, events)
