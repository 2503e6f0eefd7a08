"""Rounds of workloads and baselines: each measures all of them, so that what disturbs the machine disturbs all alike."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from metering.trials.bench.backlog import Drained, drain
from metering.trials.bench.dramatiq_baseline import measure_one_message_per_call
from metering.trials.bench.fixture import Fixture, make_orgs
from metering.trials.bench.plan import Plan
from metering.trials.bench.rate import Rate, Spread, spread
from metering.trials.bench.raw_copy import measure_raw_copy
from metering.trials.bench.reconciliation import write_gates
from metering.trials.bench.sizes import DebitCost, debit_cost, footprint
from metering.trials.bench.tpcb import measure_tpcb, prepare_tpcb
from metering.trials.event_generator import Traffic, events
from workers.meter import BATCH_LIMIT

WARM_UP_EVENTS: Final = 10_000
CALLS_PER_LOAD: Final = 100_000_000

_loads: Iterator[int] = count(1)


@dataclass(frozen=True, slots=True)
class Workload:
    """Who calls, and how many meters bill it."""

    name: str
    orgs: int
    traffic: Traffic = Traffic.UNIFORM
    meters: int = 1
    batch_limit: int = BATCH_LIMIT


@dataclass(frozen=True, slots=True)
class Measured:
    """A workload, and how it went."""

    workload: Workload
    per_second: Spread
    cpu_us_per_event: float | None
    """Of the meters' processes; None where the system doesn't tell."""
    peak_memory_mb: float | None
    """Of the meter that took most in any repetition."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """What the same servers do by other ways."""

    one_message_per_call: Spread
    one_transaction_per_call: Spread
    tpcb: Spread
    raw_copy: Spread


@dataclass(frozen=True, slots=True)
class Throughput:
    """All rounds."""

    measured: list[Measured]
    """The first is the one that others are compared with: many orgs alike, one meter."""
    baselines: Baselines
    debit: DebitCost
    """Of the first workload's debits."""


def workloads(plan: Plan) -> list[Workload]:
    """What each round measures."""
    return [
        Workload("uniform", plan.orgs),
        *([Workload("uniform", plan.orgs, meters=plan.meters)] if plan.meters > 1 else []),
        Workload("zipf", plan.orgs, Traffic.ZIPF),
        Workload("single", plan.orgs, Traffic.SINGLE),
        Workload("many", plan.many_orgs),
    ]


def measure_throughput(fixture: Fixture, plan: Plan, report: Callable[[int], None]) -> Throughput:
    """Warm up, then as many rounds as the plan has repetitions."""
    make_orgs(fixture.owner, range(1, plan.many_orgs + 1))
    write_gates(fixture.engine, fixture.client)  # an org's first gate costs once, not with its calls
    prepare_tpcb(fixture.servers)
    tried = workloads(plan)
    drained: dict[Workload, list[Drained]] = {each: [] for each in tried}
    baselines: list[tuple[Rate, Rate, Rate, Rate]] = []
    costs: list[DebitCost] = []
    bill(fixture, tried[0], WARM_UP_EVENTS, report)
    for _ in range(plan.repetitions):
        for workload in tried:
            before = footprint(fixture.engine)
            drained[workload].append(bill(fixture, workload, plan.events, report, jobs=plan.jobs))
            if workload is tried[0]:
                costs.append(debit_cost(before, footprint(fixture.engine)))
        baselines.append(_baselines(fixture, plan, report))
    return Throughput(
        [measured(workload, runs) for workload, runs in drained.items()],
        Baselines(*(spread(rates) for rates in zip(*baselines, strict=True))),
        sorted(costs, key=lambda cost: cost.wal_bytes)[len(costs) // 2],
    )


def bill(
    fixture: Fixture,
    workload: Workload,
    count: int,
    report: Callable[[int], None],
    *,
    jobs: bool = False,
    checkpoint_halfway: bool = False,
) -> Drained:
    """Fill the stream with so many new events of a workload, and have them billed."""
    return drain(
        fixture,
        _new_events(count, workload.orgs, workload.traffic),
        report=report,
        meters=workload.meters,
        batch_limit=workload.batch_limit,
        jobs=jobs,
        checkpoint_halfway=checkpoint_halfway,
    )


def measured(workload: Workload, runs: Sequence[Drained]) -> Measured:
    """In short."""
    cpu_us = [run.meter_cpu_s * 1e6 / run.rate.count for run in runs if run.meter_cpu_s is not None]
    peaks = [run.meter_peak_memory_mb for run in runs if run.meter_peak_memory_mb is not None]
    return Measured(
        workload,
        spread([run.rate for run in runs]),
        statistics.median(cpu_us) if cpu_us else None,
        max(peaks, default=None),
    )


def _baselines(fixture: Fixture, plan: Plan, report: Callable[[int], None]) -> tuple[Rate, Rate, Rate, Rate]:
    """One repetition of each, in the order of `Baselines`."""
    messages = _new_events(plan.messages, plan.orgs, Traffic.UNIFORM)
    alone = Workload("uniform", plan.orgs, batch_limit=1)
    return (
        measure_one_message_per_call(fixture, messages, report),
        bill(fixture, alone, plan.messages, report).rate,
        measure_tpcb(fixture.servers, plan.tpcb_s),
        measure_raw_copy(fixture.servers.owner_database_url),
    )


def _new_events(count: int, orgs: int, traffic: Traffic) -> Iterator[str]:
    number = next(_loads)  # no two loads share a call
    return events(count, orgs=orgs, first_call_id=number * CALLS_PER_LOAD, seed=number, traffic=traffic)
