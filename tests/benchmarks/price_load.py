# ruff: noqa: T201 - a table on the terminal is the point
"""What prices cost the meter: plain ones, 100,000 orgs' own, and steps for every org: `python -m tests.benchmarks.price_load`.

Each has servers of its own, and they take turns, because these machines are noisy. `--beside CHECKOUT` has another revision, with
plain prices, take turns with them, whatever its schema.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

from sqlalchemy import text

from db.postgres.engine import transaction
from metering.trials.bench.fixture import make_orgs, making_fixture
from metering.trials.bench.reconciliation import write_gates
from metering.trials.bench.throughput import WARM_UP_EVENTS, Workload, bill

ORGS: Final = 1_000
ROOT: Final = Path(__file__).parents[2]

# As one statement, because setting each by the command takes its turn with every other writer.
SET: Final = {
    "plain": "",
    "own": """
        INSERT INTO prices (tier, org_id, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s,
            minimum_s, connect_fee_microusd, created_at)
        SELECT 'bolt', n, '2020-01-01', 70000, 60, 60, 0, 0, now() FROM generate_series(1, 100000) AS n
    """,
    "steps": """
        INSERT INTO prices (tier, in_force_from, rate_microusd_per_minute, increment_first_s, increment_next_s,
            minimum_s, connect_fee_microusd, created_at, steps)
        VALUES ('bolt', '2020-01-01', 50000, 60, 60, 0, 0, now(), '{6000,0,30000,60000,50000}')
    """,
}


def serve(prices: str, events: int) -> None:
    """Bill so many events for each line on standard input; print the rate."""
    with making_fixture(Path(tempfile.mkdtemp(prefix="metering-prices-"))) as fixture:
        make_orgs(fixture.owner, range(1, ORGS + 1))
        with transaction(fixture.owner) as connection:
            if SET[prices]:
                connection.execute(text(SET[prices]))
        write_gates(fixture.engine, fixture.client)
        workload = Workload("uniform", ORGS)
        bill(fixture, workload, WARM_UP_EVENTS, lambda _: None)
        print("ready", flush=True)
        for _ in sys.stdin:
            run = bill(fixture, workload, events, lambda _: None)
            cpu_us = (run.meter_cpu_s or 0) * 1e6 / run.rate.count
            print("rate", run.rate.per_second, cpu_us, flush=True)


def answer(stream: IO[str] | None, word: str) -> tuple[float, ...]:
    """The numbers in the next line of a program that begins with the word."""
    for said in stream or ():
        if said.startswith(word):
            return tuple(map(float, said.split()[1:]))
    raise SystemExit("one of the programs has ended")


def main() -> None:
    """Let them take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=SET)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve, asked.events)
        return
    kinds = [("plain", ROOT), ("own", ROOT), ("steps", ROOT)]
    if asked.beside:
        kinds.insert(0, ("plain", asked.beside.resolve()))
    with ExitStack() as stack:
        programs = []
        for prices, checkout in kinds:
            command = [sys.executable, __file__, "--serve", prices, "--events", str(asked.events)]
            environment = os.environ | {"PYTHONPATH": str(checkout)}
            programs.append(
                stack.enter_context(
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=checkout,
                        text=True,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
            )
            answer(programs[-1].stdout, "ready")
        runs: list[list[tuple[float, ...]]] = [[] for _ in kinds]
        for _ in range(asked.rounds):
            for program, rates in zip(programs, runs, strict=True):
                if program.stdin is None:
                    raise SystemExit("a program without its input")
                print(file=program.stdin, flush=True)
                rates.append(answer(program.stdout, "rate"))
        for program in programs:
            program.communicate("", timeout=60)
    first = statistics.median(rate for rate, _ in runs[0])
    for (prices, checkout), rates in zip(kinds, runs, strict=True):
        rate, cpu_us = (statistics.median(each) for each in zip(*rates, strict=True))
        listed = ", ".join(f"{each:,.0f}" for each, _ in rates)
        where = "" if checkout == ROOT else f" ({checkout.name})"
        print(f"{prices}{where}: {rate:,.0f}/s, {rate / first:.3f}, {cpu_us:.1f} µs of processor; {listed}")


if __name__ == "__main__":
    main()
