# ruff: noqa: T201 - a table on the terminal is the point
"""Latency at loads of your choice: `python -m tests.benchmarks.hold_load 8000 16000`, in events per second.

Unlike `metering bench`, whose loads follow from what is sustained, it puts the same load on whatever program it is given: with
the checkout of another revision first in PYTHONPATH, on that one's roles. Run both in turns, often: these machines are noisy.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from metering.sandbox.listener import Listener
from metering.sandbox.measuring.bed import checkpoint, make_orgs, making_bed
from metering.sandbox.measuring.open_loop import observe
from metering.sandbox.measuring.process import usage
from metering.sandbox.measuring.roles import meter_command, running_roles

RATES = (4_000, 8_000, 16_000, 24_000)
ORGS = 1_000
SECONDS = 5.0
WARM_UP_PER_SECOND = 2_000.0


def main() -> None:
    """Measure each load once, on one meter, and print a table."""
    rates = [float(rate) for rate in sys.argv[1:]] or RATES
    data_dir = Path(tempfile.mkdtemp(prefix="metering-load-"))
    try:
        with making_bed(data_dir) as bed:
            make_orgs(bed.owner, range(1, ORGS + 1))
            with running_roles(data_dir, [meter_command(0)]) as roles, Listener(bed.client) as listener:
                observe(bed, roles, listener, per_second=WARM_UP_PER_SECOND, seconds=SECONDS / 2, orgs=ORGS)
                print(
                    "| events/s | commit p50 ms | p99 | gate p50 | p99 | events in a batch | CPU us/event |"
                )
                print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
                for rate in rates:
                    checkpoint(bed)
                    before = usage(roles[0].process.pid)
                    earlier = len(roles[0].said("batch"))
                    seen = observe(bed, roles, listener, per_second=rate, seconds=SECONDS, orgs=ORGS)
                    after = usage(roles[0].process.pid)
                    used_s = after.cpu_s - before.cpu_s if before is not None and after is not None else 0.0
                    batch = statistics.median(each["events"] for each in roles[0].said("batch")[earlier:])
                    print(
                        f"| {rate:,.0f} | {seen.commit.p50_ms:.1f} | {seen.commit.p99_ms:.1f} | {seen.gate.p50_ms:.1f}"
                        f" | {seen.gate.p99_ms:.1f} | {batch:.0f} | {used_s * 1e6 / seen.count:.0f} |",
                        flush=True,
                    )
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
