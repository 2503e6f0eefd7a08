"""A whole run, part by part."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from metering.trials.bench.fixture import Fixture, make_orgs
from metering.trials.bench.gate_reads import measure_gate_reads
from metering.trials.bench.http_reads import HttpRead, measure_http_reads
from metering.trials.bench.long_runs import Grown, LongRun, measure_growth, measure_long_run
from metering.trials.bench.machine import machine_facts
from metering.trials.bench.percentiles import Percentiles
from metering.trials.bench.plan import Part, Plan
from metering.trials.bench.reconciliation import measure_reconciliation
from metering.trials.bench.sustained import Latency, measure_latency
from metering.trials.bench.throughput import (
    Measured,
    Throughput,
    Workload,
    bill,
    measure_throughput,
    measured,
)

HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reads:
    """What is read beside the billing."""

    hget: Percentiles
    sweep_s: float
    """A reconciliation of all gates when none is wrong."""
    gates: int
    http: list[HttpRead]


@dataclass(slots=True)
class Result:
    """What was measured; a part that wasn't asked for is None."""

    machine: dict[str, Any] = field(default_factory=dict)
    throughput: Throughput | None = None
    latency: Latency | None = None
    reads: Reads | None = None
    batches: list[Measured] | None = None
    long: LongRun | None = None
    ledger: list[Grown] | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs: ratios first, because they depend less on the machine."""
        return {"ratios": ratios(self), **asdict(self)}


def run_benchmark(fixture: Fixture, plan: Plan, result: Result, report: Callable[[Part, int], None]) -> None:
    """Measure what the plan asks for into `result`, telling `report` the part and how many more events are done."""
    result.machine = machine_facts(fixture.engine)
    parts = plan.parts

    def telling(part: Part) -> Callable[[int], None]:
        report(part, 0)
        return lambda more: report(part, more)

    if Part.THROUGHPUT in parts:
        result.throughput = measure_throughput(fixture, plan, telling(Part.THROUGHPUT))
    if Part.LATENCY in parts:
        result.latency = _latency(fixture, plan, result.throughput, telling(Part.LATENCY))
    if Part.READS in parts:
        half = HALF * _known_rate(fixture, plan, result, telling(Part.READS))
        result.reads = _reads(fixture, plan, half, telling(Part.READS))
    if Part.BATCHES in parts:
        result.batches = _batches(fixture, plan, telling(Part.BATCHES))
    if Part.LONG in parts:
        result.long = measure_long_run(fixture, plan, telling(Part.LONG))
    if Part.LEDGER in parts:
        result.ledger = measure_growth(fixture, plan, telling(Part.LEDGER))


def _latency(
    fixture: Fixture, plan: Plan, throughput: Throughput | None, report: Callable[[int], None]
) -> Latency:
    """The search begins at what a backlog is billed with: nothing that comes in over time can be faster."""
    at_most = _backlog_rate(fixture, plan, throughput, report)
    return measure_latency(fixture, plan, at_most_per_second=at_most, report=report)


def _backlog_rate(
    fixture: Fixture, plan: Plan, throughput: Throughput | None, report: Callable[[int], None]
) -> float:
    if throughput is not None:
        return throughput.measured[0].per_second.median
    make_orgs(fixture.owner, range(1, plan.orgs + 1))
    return bill(fixture, Workload("uniform", plan.orgs), plan.events, report).rate.per_second


def _known_rate(fixture: Fixture, plan: Plan, result: Result, report: Callable[[int], None]) -> float:
    """The highest sustained rate, as far as something like it was measured."""
    if result.latency is not None and result.latency.sustained_per_second:
        return result.latency.sustained_per_second
    return _backlog_rate(fixture, plan, result.throughput, report)


def _reads(fixture: Fixture, plan: Plan, events_per_second: float, report: Callable[[int], None]) -> Reads:
    sweep_s, gates = measure_reconciliation(fixture.engine, fixture.client)
    hget = measure_gate_reads(fixture.client, orgs=plan.orgs)
    report(hget.count)
    http = measure_http_reads(fixture, plan, events_per_second=events_per_second, report=report)
    return Reads(hget, sweep_s, gates, http)


def _batches(fixture: Fixture, plan: Plan, report: Callable[[int], None]) -> list[Measured]:
    """Each batch limit with as many events as take about as long."""
    make_orgs(fixture.owner, range(1, plan.orgs + 1))
    found: list[Measured] = []
    for limit in plan.batch_limits:
        workload = Workload("uniform", plan.orgs, batch_limit=limit)
        events = min(plan.events, limit * plan.messages)
        found.append(
            measured(workload, [bill(fixture, workload, events, report) for _ in range(plan.repetitions)])
        )
    return found


def ratios(result: Result) -> dict[str, float]:
    """What can be compared with other machines' runs, as far as it was measured."""
    found: dict[str, float] = {}
    if result.throughput is not None:
        found |= _throughput_ratios(result.throughput)
    if result.ledger:
        first, last = result.ledger[0], result.ledger[-1]
        found["full_ledger_to_empty"] = last.measured.per_second.median / first.measured.per_second.median
    if result.long is not None and result.long.stretches:
        first_us, last_us = (result.long.stretches[at].us_per_event for at in (0, -1))
        found["cost_at_the_end_to_begin"] = last_us / first_us
    return {name: round(value, 3) for name, value in found.items()}


def _throughput_ratios(throughput: Throughput) -> dict[str, float]:
    """Of the median rates; the first workload's to each of the others'."""
    first, *others = throughput.measured
    rate, baselines = first.per_second.median, throughput.baselines
    found = {
        "to_one_message_per_call": rate / baselines.one_message_per_call.median,
        "to_one_transaction_per_call": rate / baselines.one_transaction_per_call.median,
        "to_tpcb": rate / baselines.tpcb.median,
        "to_raw_copy": rate / baselines.raw_copy.median,
    }
    for other in others:
        workload = other.workload
        name = f"{workload.meters}_meters" if workload.meters > 1 else f"{workload.name}_orgs"
        found[f"{name}_to_first"] = other.per_second.median / rate
    return found
