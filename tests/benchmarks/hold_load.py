# ruff: noqa: T201 - a table on the terminal is the point
"""Latency at loads of your choice: `python -m tests.benchmarks.hold_load 8000 16000`, in events per second.

Unlike `metering bench`, whose loads follow from what is sustained, it puts the same load on whatever program it is given:
`--beside CHECKOUT` has another revision take turns with this one, on the same servers, because these machines are noisy.
`--valkey NAME=VALUE` has this one take turns with itself under another setting of Valkey.
"""

import argparse
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from metering.sandbox.telephony.signal_listener import SignalListener
from metering.trials.bench.fixture import Fixture, checkpoint, make_orgs, making_fixture
from metering.trials.bench.open_loop import observe
from metering.trials.bench.process import usage
from metering.trials.bench.roles import meter_command, running_roles

RATES = (4_000, 8_000, 16_000, 24_000)
ORGS = 1_000
WARM_UP_PER_SECOND = 2_000.0
WARM_UP_S = 1.5

Numbers = tuple[float, ...]
"""p50 and p99 to the commit and to the gate, events in a batch, processor time per event."""


def hold(fixture: Fixture, checkout: Path, rates: Sequence[float], seconds: float) -> list[Numbers]:
    """Measure each load once, on a new meter of that checkout."""
    os.environ["PYTHONPATH"] = str(checkout)
    measured: list[Numbers] = []
    with (
        running_roles(fixture.servers.data_dir, [meter_command(0)], log_level="debug") as roles,
        SignalListener(fixture.client) as listener,
    ):
        observe(fixture, roles, listener, per_second=WARM_UP_PER_SECOND, seconds=WARM_UP_S, orgs=ORGS)
        for rate in rates:
            checkpoint(fixture)
            before = usage(roles[0].process.pid)
            earlier = len(roles[0].said("batch"))
            seen = observe(fixture, roles, listener, per_second=rate, seconds=seconds, orgs=ORGS)
            after = usage(roles[0].process.pid)
            used_s = after.cpu_s - before.cpu_s if before is not None and after is not None else 0.0
            batch = statistics.median(each["events"] for each in roles[0].said("batch")[earlier:])
            latencies = (seen.commit.p50_ms, seen.commit.p99_ms, seen.gate.p50_ms, seen.gate.p99_ms)
            measured.append((*latencies, batch, used_s * 1e6 / seen.count))
    return measured


def show(rate: float, name: str, runs: Sequence[Numbers]) -> None:
    """A row of medians, with the lowest and the highest of the first."""
    commit_p50, commit_p99, gate_p50, gate_p99, batch, cpu_us = (
        statistics.median(each) for each in zip(*runs, strict=True)
    )
    p50s = [run[0] for run in runs]
    print(
        f"| {rate:,.0f} | {name} | {commit_p50:.1f} ({min(p50s):.1f} to {max(p50s):.1f}) | {commit_p99:.1f} | {gate_p50:.1f}"
        f" | {gate_p99:.1f} | {batch:.0f} | {cpu_us:.0f} |"
    )


def compared(these: Sequence[float], others: Sequence[float]) -> str:
    """How the first of each pair compares with the second: the geometric mean of the ratios, with its standard error."""
    logs = [math.log(this / other) for this, other in zip(these, others, strict=True)]
    mean, error = math.exp(statistics.mean(logs)), statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{mean:.2f} ± {mean * error:.2f}"


def show_ratios(rates: Sequence[float], runs: dict[tuple[float, str], list[Numbers]]) -> None:
    """How the pairs compare, load by load."""
    for rate in rates:
        these, others = (list(zip(*runs[rate, name], strict=True)) for name in ("this", "other"))
        for column, what in enumerate(("commit p50", "commit p99", "gate p50", "gate p99")):
            print(f"{rate:,.0f}: {what} of this to the other's {compared(these[column], others[column])}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Latency at given loads, in events per second.")
    parser.add_argument("rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--beside", type=Path, help="the checkout of another revision, to take turns with")
    parser.add_argument(
        "--valkey", metavar="NAME=VALUE", help="a setting of Valkey's, to take turns with the usual one"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each load is held")
    asked = parser.parse_args()
    checkout = Path(__file__).parents[2]
    programs = {"this": checkout}
    if asked.beside or asked.valkey:
        programs["other"] = asked.beside.absolute() if asked.beside else checkout
    setting, _, other_value = (asked.valkey or "").partition("=")
    data_dir = Path(tempfile.mkdtemp(prefix="metering-load-"))
    try:
        with making_fixture(data_dir) as fixture:
            make_orgs(fixture.owner, range(1, ORGS + 1))
            values = {"other": other_value}
            if setting:
                values["this"] = str(fixture.client.config_get(setting)[setting])
            runs: dict[tuple[float, str], list[Numbers]] = {}
            for number in range(asked.rounds):
                for name in list(programs)[:: -1 if number % 2 else 1]:
                    if setting:
                        fixture.client.config_set(setting, values[name])
                    for rate, numbers in zip(
                        asked.rates, hold(fixture, programs[name], asked.rates, asked.seconds), strict=True
                    ):
                        runs.setdefault((rate, name), []).append(numbers)
            print(
                "| events/s | program | commit p50 ms | p99 | gate p50 | p99 | events in a batch | CPU us/event |"
            )
            print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
            for (rate, name), measured in sorted(runs.items(), reverse=True):
                show(rate, name, measured)
            if len(programs) > 1 and asked.rounds > 1:
                show_ratios(asked.rates, runs)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
