"""Latency under a load that doesn't wait: from an event's scheduled time to its commit, and to the gate that follows."""

import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from metering.rules.gates import Balance, SignalType
from metering.runtime.clock import system_clock
from metering.runtime.names import STREAM
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.signals.gates import Gates
from metering.trials.bench.commit_times import commit_times
from metering.trials.bench.fixture import Fixture, give_a_cent, make_orgs
from metering.trials.bench.generate import LoadOrder, Pushed, order_words, probes, read_pushed
from metering.trials.bench.percentiles import Percentiles, percentiles
from metering.trials.bench.rate import MeasuringError
from metering.trials.bench.roles import Role
from metering.trials.event_generator import Traffic

PROBES_PER_SECOND: Final = 100
"""Events that close a gate; the others' orgs are exhausted from the start, so that their gates change without a signal."""
SUSTAINED_BACKLOG_S: Final = 0.25
"""A load is sustained if at its end no more waits than came in so long, and the generator kept its times as well."""
DRAIN_LIMIT_S: Final = 120.0
POLL_EVERY_S: Final = 0.01

_first_probes: Iterator[int] = count(1_000_000_000, 1_000_000)
_first_call_ids: Iterator[int] = count(10_000_000_000, 100_000_000)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a load led to."""

    per_second: float
    count: int
    commit: Percentiles
    """From scheduled time to commit, of every event."""
    gate: Percentiles
    """From scheduled time until the gate's signal is heard, of the probes."""
    backlog: int
    """Events in the stream when the last one had been pushed."""
    generator_latest_s: float
    sustained: bool
    """Whether the meters, and the generator, kept up."""


def observe(
    fixture: Fixture,
    meters: Sequence[Role],
    listener: SignalListener,
    *,
    per_second: float,
    seconds: float,
    orgs: int,
    traffic: Traffic = Traffic.UNIFORM,
) -> Observed:
    """Put a load on meters that run and have nothing to do, and wait until they are done with it."""
    events = max(int(per_second * seconds), 1)
    order = LoadOrder(
        redis_url=fixture.servers.redis_url,
        per_second=per_second,
        count=events,
        first_call_id=next(_first_call_ids),
        orgs=orgs,
        traffic=traffic,
        first_probe=next(_first_probes),
        probe_every=max(int(per_second / PROBES_PER_SECOND), 1),
    )
    probed = probes(order)
    _open_gates(fixture, list(probed))
    since = listener.count
    pushed = _push(fixture, order)
    _wait_until_done(fixture, meters)
    committed_at = commit_times([meter.log_path for meter in meters], pushed.stream_ids)
    due_at = [pushed.started_at + number / per_second for number in range(events)]
    closed_at = _closed_at(listener, probed.keys(), since)
    return Observed(
        per_second,
        events,
        percentiles(committed - due for committed, due in zip(committed_at, due_at, strict=True)),
        percentiles(closed_at[org_id] - due_at[number] for org_id, number in probed.items()),
        pushed.backlog,
        pushed.latest_s,
        max(pushed.backlog / per_second, pushed.latest_s) <= SUSTAINED_BACKLOG_S,
    )


def _open_gates(fixture: Fixture, org_ids: Sequence[int]) -> None:
    make_orgs(fixture.owner, org_ids)
    now = system_clock()
    give_a_cent(fixture.owner, org_ids, now)
    Gates(fixture.client).follow([Balance(org_id, 1, 1) for org_id in org_ids], now)


def _push(fixture: Fixture, order: LoadOrder) -> Pushed:
    """Have a process push the load."""
    answer_path = fixture.servers.data_dir / "pushed.json"
    program = [sys.executable, "-P", "-m", *order_words(order, answer_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MeasuringError(f"The generator failed: {done.stderr[-1_000:]}")
    return read_pushed(answer_path)


def _wait_until_done(fixture: Fixture, meters: Sequence[Role]) -> None:
    give_up_s = time.monotonic() + DRAIN_LIMIT_S
    while fixture.client.xlen(STREAM):
        for meter in meters:
            meter.require_running()
        if time.monotonic() > give_up_s:
            raise MeasuringError("The meters did not come to the end of the load.")
        time.sleep(POLL_EVERY_S)


def _closed_at(listener: SignalListener, org_ids: Collection[int], since: int) -> dict[int, float]:
    """By org: seconds since the epoch when it was heard that its gate had closed; waits until that is heard of all."""
    to_epoch_s = time.time() - time.monotonic()
    give_up_s = time.monotonic() + DRAIN_LIMIT_S
    while True:
        closed_at = {
            heard.message.org_id: heard.heard_s + to_epoch_s
            for heard in listener.heard(org_ids, since)
            if heard.message.type == SignalType.EXHAUSTED
        }
        if len(closed_at) == len(org_ids):
            return closed_at
        if listener.error is not None:
            raise listener.error
        if time.monotonic() > give_up_s:
            raise MeasuringError("Not every gate that was to close has closed.")
        time.sleep(POLL_EVERY_S)
