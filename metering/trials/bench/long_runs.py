"""Whether the cost of an event stays the same: within a long run, and as the ledger grows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from metering.runtime.clock import system_clock
from metering.trials.bench.backlog import Drained, Mark
from metering.trials.bench.fixture import Fixture, checkpoint, make_orgs
from metering.trials.bench.old_ledger import fill_ledger
from metering.trials.bench.plan import Plan
from metering.trials.bench.throughput import Measured, Workload, bill, measured

STRETCHES: Final = (0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of 5 million events the first 100,000, then up to 500,000, 1, 2, 3, 4 and 5 million."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a long run."""

    up_to_events: int
    us_per_event: float
    """From the stretch's first event to its last, by the clock on the wall."""


@dataclass(frozen=True, slots=True)
class LongRun:
    """One run over a backlog that takes minutes."""

    events: int
    per_second: float
    stretches: list[Stretch]
    peak_memory_mb: float | None
    """Of the meter."""


@dataclass(frozen=True, slots=True)
class Grown:
    """Throughput when the ledger held about so many debits."""

    ledger_debits: int
    measured: Measured


def measure_long_run(fixture: Fixture, plan: Plan, report: Callable[[int], None]) -> LongRun:
    """One meter, one backlog, one checkpoint halfway."""
    make_orgs(fixture.owner, range(1, plan.orgs + 1))
    run = bill(fixture, Workload("uniform", plan.orgs), plan.long_events, report, checkpoint_halfway=True)
    return LongRun(run.rate.count, run.rate.per_second, stretches(run), run.meter_peak_memory_mb)


def stretches(run: Drained) -> list[Stretch]:
    """The cost of an event in each stretch of a run."""
    found: list[Stretch] = []
    before = Mark(0, 0.0)
    for share in STRETCHES:
        end = next(mark for mark in run.marks if mark.events >= run.rate.count * share)
        if end.events > before.events:
            cost_us = (end.after_s - before.after_s) * 1e6 / (end.events - before.events)
            found.append(Stretch(end.events, cost_us))
        before = end
    return found


def measure_growth(fixture: Fixture, plan: Plan, report: Callable[[int], None]) -> list[Grown]:
    """Throughput of the first workload as it is, and again each time that the ledger has grown.

    The checkpoint after each growth is written before anything is measured: it is the growth's.
    """
    make_orgs(fixture.owner, range(1, plan.orgs + 1))
    workload = Workload("uniform", plan.orgs)
    grown: list[Grown] = []
    written = 0
    for size in (0, *plan.ledger_sizes):
        if size:
            written += fill_ledger(
                fixture.owner,
                size - written,
                orgs=plan.orgs,
                at=system_clock(),
                report=report,
                numbered_from=written,
            )
        checkpoint(fixture)
        runs = [bill(fixture, workload, plan.events, report) for _ in range(plan.repetitions)]
        grown.append(Grown(written, measured(workload, runs)))
    return grown
