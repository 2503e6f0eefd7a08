"""A meter that is frozen, wherever it is, holds the others up for seconds only, and harms nothing when it goes on."""

import signal
import time

import pytest

from metering.runtime.crashpoints import CrashPoint
from tests.workers.calls import ORG_IDS, assert_billed, make_calls
from tests.workers.processes import MeterProcess, Site, wait_until
from workers.stream import PART

# The first transaction that commits loads the prices; the second is the first batch's.
PLACES = {
    CrashPoint.LEDGER_AFTER_LOCK: 1,
    CrashPoint.LEDGER_AFTER_WRITE: 1,
    CrashPoint.METER_BEFORE_COMMIT: 2,
    CrashPoint.METER_BEFORE_ACK: 1,
}


@pytest.mark.long
@pytest.mark.timeout(180)
def test_meters_stopped_at_four_places(site: Site) -> None:
    """Each is stopped with a batch of orgs of its own, so that all four hold what they hold at the same time."""
    meters = [site.start(f"stops-at-{place}", crash_point=f"{place}:{n}:stop") for place, n in PLACES.items()]
    wait_until(lambda: all(meter.said("meter is ready") for meter in meters), "getting ready")
    events: list[bytes] = []
    stopped: list[MeterProcess] = []

    def another_has_stopped() -> bool:
        stopped.extend(meter for meter in meters if meter not in stopped and meter.is_stopped())
        return len(stopped) > number

    for number in range(len(meters)):
        # No conflicts: which of two contradicting events is billed depends on which comes first, and what a stopped meter holds
        # is left for later.
        theirs = make_calls(
            PART, seed=number, first_call_id=1_000 * number + 1, org_ids=ORG_IDS[number::4], conflicts=False
        )
        site.push_at_once(theirs)  # whoever reads first takes all of them
        wait_until(another_has_stopped, f"stop {number + 1}")
        # Now: on a slow machine, others soon take it for abandoned.
        assert site.in_hand()[stopped[-1].name] == PART
        events += theirs

    worker = site.start("worker")
    wait_until(lambda: worker.said("meter is ready"), "getting ready")
    began_s = time.monotonic()
    for_all = make_calls(1_000, seed=41, first_call_id=10_000, conflicts=False)
    site.push(for_all)
    events += for_all
    site.wait_until_drained(limit_s=30)
    assert time.monotonic() - began_s < 30
    assert_billed(site.engine, site.client, events)

    # They go on: what they had in hand was billed without them, and they take their share of what comes.
    worker.stop()
    for meter in stopped:
        meter.send(signal.SIGCONT)
    wait_until(lambda: all(meter.said("batch") for meter in stopped), "finishing what they had in hand")
    assert_billed(site.engine, site.client, events)

    def all_take_more() -> bool:
        more = make_calls(5, seed=len(events), first_call_id=100_000 + len(events), broken=False)
        site.push(more)
        events.extend(more)
        return all(len(meter.said("batch")) > 1 for meter in stopped)

    wait_until(all_take_more, "taking more")
    site.wait_until_drained()
    assert_billed(site.engine, site.client, events)
