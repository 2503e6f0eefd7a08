# ruff: noqa: T201 - a table on the terminal is the point
"""The API beside a load of your choice: `python -m tests.benchmarks.hold_reads 30000`, in events per second.

`--beside CHECKOUT` has another revision's API take turns with this one's, on the same servers and beside the same meter, because
these machines are noisy. It tells as well how many of the slow answers came one after the other: those waited for the same stall.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from secrets import token_urlsafe

from metering.sandbox.telephony.signal_listener import SignalListener
from metering.trials.bench.fixture import Fixture, make_orgs, making_fixture
from metering.trials.bench.http_load import GetOrder
from metering.trials.bench.http_reads import (
    ACCOUNT,
    GATE,
    ORG_ID,
    REQUESTS_PER_SECOND,
    TELEPHONY_SETTING,
    api_address,
    ask_beside,
    make_asking_org,
)
from metering.trials.bench.percentiles import percentiles
from metering.trials.bench.roles import api_commands, meter_command, running_roles
from tests.benchmarks.hold_load import ORGS, compared

SECONDS = 3.0
SLOW_S = 0.01
SAME_STALL = 25
"""How many quicker answers may come between two slow ones of one stall: 50 ms."""

Windows = list[list[float]]
"""Window by window: how long each request took, in seconds."""


def stalls(latencies_s: Sequence[float]) -> list[int]:
    """How many slow answers came in each stall."""
    found: list[int] = []
    last = -SAME_STALL - 1
    for number, took_s in enumerate(latencies_s):
        if took_s > SLOW_S:
            if number - last > SAME_STALL:
                found.append(0)
            found[-1] += 1
            last = number
    return found


def hold(
    fixture: Fixture, checkouts: dict[str, Path], events_per_second: float, rounds: int
) -> dict[tuple[str, str], Windows]:
    """Ask each API for each path in turns, by request and program."""
    token, api_key = token_urlsafe(), make_asking_org(fixture, ORG_ID)
    os.environ[TELEPHONY_SETTING] = token
    asked = {
        "gate by the token": (GATE, token),
        "gate by a key": (GATE, api_key),
        "account by a key": (ACCOUNT, api_key),
    }
    measured: dict[tuple[str, str], Windows] = {}
    with ExitStack() as stack, SignalListener(fixture.client) as listener:
        (meter,) = stack.enter_context(
            running_roles(fixture.servers.data_dir, [meter_command(0)], log_level="debug")
        )
        addresses: dict[str, tuple[str, int]] = {}
        for name, checkout in checkouts.items():
            os.environ["PYTHONPATH"] = str(checkout)
            log_dir = fixture.servers.data_dir / name
            log_dir.mkdir()
            addresses[name] = api_address(stack.enter_context(running_roles(log_dir, api_commands())))
        del os.environ["PYTHONPATH"]
        for number in range(-1, rounds):  # the first to warm up
            for name in list(checkouts)[:: -1 if number % 2 else 1]:
                for request, (path, secret) in asked.items():
                    count = int(REQUESTS_PER_SECOND * SECONDS)
                    order = GetOrder(*addresses[name], path, secret, REQUESTS_PER_SECOND, count)
                    latencies_s, _ = ask_beside(
                        fixture, meter, listener, order, events_per_second=events_per_second, orgs=ORGS
                    )
                    if number >= 0:
                        measured.setdefault((request, name), []).append(latencies_s)
    return measured


def show(request: str, name: str, windows: Windows) -> None:
    """A row of the windows' medians, with the lowest and the highest p99, and how the slow answers lay."""
    took = [percentiles(each) for each in windows]
    p99s = [each.p99_ms for each in took]
    slow = sorted((size for each in windows for size in stalls(each)), reverse=True)
    print(
        f"| {request} | {name} | {statistics.median(each.p50_ms for each in took):.1f} | {statistics.median(p99s):.1f}"
        f" | {min(p99s):.1f} to {max(p99s):.1f} | {max(each.highest_ms for each in took):.0f}"
        f" | {sum(slow)} in {len(slow)} ({', '.join(map(str, slow[:3])) or 'none'}) |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="The API beside a load, in events per second.")
    parser.add_argument("rate", nargs="?", type=float, default=24_000.0)
    parser.add_argument(
        "--beside", type=Path, help="the checkout of another revision, whose API takes turns with this one's"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how many windows of 3 s for each request")
    asked = parser.parse_args()
    checkouts = {"this": Path(__file__).parents[2]}
    if asked.beside:
        checkouts["other"] = asked.beside.absolute()
    data_dir = Path(tempfile.mkdtemp(prefix="metering-reads-"))
    try:
        with making_fixture(data_dir) as fixture:
            make_orgs(fixture.owner, range(1, ORGS + 1))
            measured = hold(fixture, checkouts, asked.rate, asked.rounds)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    print(
        "| request | program | p50 ms | p99 | lowest and highest p99 | highest | over 10 ms, in stalls (largest) |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for (request, name), windows in sorted(measured.items()):
        show(request, name, windows)
    if asked.beside and asked.rounds > 1:
        for request in sorted({request for request, _ in measured}):
            these, others = (
                [percentiles(each).p99_ms for each in measured[request, name]] for name in ("this", "other")
            )
            print(f"{request}: p99 of this to the other's {compared(these, others)}")


if __name__ == "__main__":
    main()
