"""What holds cost: `python -m tests.benchmarks.held_calls [ROUNDS] [EVENTS]`.

Bills calls without holds and with a hold for each, in turns, so that what disturbs the machine disturbs both; then starts calls
of 10,000 orgs that run ten each.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import redis

from metering.runtime.names import HOLDING_ORGS, hold_ends_key, holds_key
from metering.signals.hold_library import load_hold_library
from metering.trials.bench.backlog import drain
from metering.trials.bench.fixture import Fixture, make_orgs, making_fixture
from metering.trials.bench.reconciliation import write_gates
from metering.trials.event_generator import events
from tests.signals.holding import set_gate
from workers.meter import BATCH_LIMIT

ORGS: Final = 1_000
HOLDING: Final = 10_000
RUNNING: Final = 10
STARTS: Final = 10_000
AT_ONCE: Final = 1_000


def hold_all(client: redis.Redis, pushed: Sequence[str]) -> None:
    """A cent for each call, as call_start leaves it; the orgs of the benchmark have no money."""
    now_ms = int(time.time() * 1_000)
    calls = sorted({(call["org_id"], call["call_id"]) for call in map(json.loads, pushed)})
    for first in range(0, len(calls), AT_ONCE):
        with client.pipeline(transaction=False) as pipeline:
            for org_id, call_id in calls[first : first + AT_ONCE]:
                pipeline.hset(holds_key(org_id), mapping={str(call_id): f"1 {now_ms} 0 ", "last_ms": now_ms})
                pipeline.hincrby(holds_key(org_id), "cents", 1)
                pipeline.zadd(hold_ends_key(org_id), {str(call_id): now_ms + 3_600_000})
                pipeline.sadd(HOLDING_ORGS, org_id)
            pipeline.execute()


def bill(fixture: Fixture, count: int, seed: int, *, held: bool) -> float:
    """Calls billed per second."""
    pushed = list(events(count, orgs=ORGS, first_call_id=seed * 100_000_000, seed=seed))
    if held:
        hold_all(fixture.client, pushed)
    else:
        fixture.client.delete(HOLDING_ORGS)  # as where nobody takes holds
    rate = drain(fixture, iter(pushed), report=lambda _: None, meters=1, batch_limit=BATCH_LIMIT).rate
    if held:
        assert not any(fixture.client.zcard(hold_ends_key(org_id)) for org_id in range(1, ORGS + 1))
    return rate.per_second


def start_calls(client: redis.Redis) -> list[float]:
    """Seconds that each start takes, of one client that starts one after another."""
    load_hold_library(client)
    for org_id in range(1, HOLDING + 1):
        set_gate(client, org_id, balance_cents=1_000_000)
    with client.pipeline(transaction=False) as pipeline:
        for call_id in range(1, HOLDING * RUNNING + 1):
            org_id = call_id % HOLDING + 1
            pipeline.fcall(
                "call_start", 2, holds_key(org_id), hold_ends_key(org_id), str(call_id), "80", "3600"
            )
        pipeline.execute()
    took_s = []
    for call_id in range(10**9, 10**9 + STARTS):
        org_id = random.randint(1, HOLDING)
        began_s = time.perf_counter()
        client.fcall("call_start", 2, holds_key(org_id), hold_ends_key(org_id), str(call_id), "80", "3600")
        took_s.append(time.perf_counter() - began_s)
    return sorted(took_s)


def main(rounds: int = 3, count: int = 40_000) -> None:
    """Print what was measured."""
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as directory, making_fixture(Path(directory)) as fixture:
        make_orgs(fixture.owner, range(1, ORGS + 1))
        write_gates(fixture.engine, fixture.client)
        bill(fixture, 10_000, 1, held=False)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for seed in range(2, 2 * rounds + 2):
            rates[seed % 2 == 1].append(bill(fixture, count, seed, held=seed % 2 == 1))
        plain, held = (statistics.median(rates[each]) for each in (False, True))
        say(
            f"billed per second: {plain:,.0f} without holds, {held:,.0f} with one for each call: {held / plain:.2f}\n"
        )
        took_s = start_calls(fixture.client)
        middle, late = took_s[STARTS // 2] * 1_000, took_s[STARTS * 99 // 100] * 1_000
        say(
            f"call_start, one at a time: {STARTS / sum(took_s):,.0f} per second, median {middle:.2f} ms, p99 {late:.2f} ms\n"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
