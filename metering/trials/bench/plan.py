"""What a run measures, and for how long."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

WORKLOADS: Final = 5
LIKELY_PER_SECOND: Final = 15_000


class Part(StrEnum):
    """A part of a run that can be asked for alone."""

    THROUGHPUT = "throughput"
    """From a filled stream to ack, with baselines in between, and what a debit costs beside time."""
    LATENCY = "latency"
    READS = "reads"
    BATCHES = "batches"
    """Throughput against the largest batch."""
    LONG = "long"
    """One long run."""
    LEDGER = "ledger"
    """Throughput against what the ledger holds already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and times of a run."""

    parts: frozenset[Part]
    events: int
    """In each repetition of each workload."""
    repetitions: int
    orgs: int
    many_orgs: int
    meters: int
    """The most that run side by side."""
    jobs: bool
    messages: int
    """For each repetition of a baseline that takes calls one at a time."""
    tpcb_s: int
    search_steps: int
    search_step_s: float
    latency_s: float
    ladder: tuple[float, ...]
    """Shares of the highest sustained load, at each of which latency is measured once."""
    batch_limits: tuple[int, ...]
    long_events: int
    ledger_sizes: tuple[int, ...]
    """Debits that the ledger is to hold when throughput is measured again, rising."""

    def expected_events(self) -> dict[Part, int]:
        """About how many events each part tells of, pushed ones and billed ones: for a progress bar, not for a result."""
        rounds = self.repetitions
        loads_s = self.latency_s * (rounds + 1) + self.search_step_s * (self.search_steps + len(self.ladder))
        whole = {
            Part.THROUGHPUT: rounds * (2 * WORKLOADS * self.events + 3 * self.messages),
            Part.LATENCY: round(loads_s * LIKELY_PER_SECOND),
            Part.READS: round(3 * (self.latency_s + 1) * LIKELY_PER_SECOND / 2),
            Part.BATCHES: 2
            * rounds
            * sum(min(self.events, limit * self.messages) for limit in self.batch_limits),
            Part.LONG: 2 * self.long_events,
            Part.LEDGER: max(self.ledger_sizes) + 2 * rounds * self.events * (len(self.ledger_sizes) + 1),
        }
        return {part: whole[part] for part in Part if part in self.parts}


def make_plan(
    *,
    full: bool,
    parts: frozenset[Part],
    events: int | None,
    orgs: int,
    meters: int,
    repetitions: int | None,
    jobs: bool,
) -> Plan:
    """A plan of minutes, or with `full` one of an hour or two; what is given stands in place of the plan's own."""
    always = {Part.THROUGHPUT, Part.LATENCY, Part.READS}
    return Plan(
        parts=parts or (frozenset(Part) if full else frozenset(always)),
        events=events or (200_000 if full else 40_000),
        repetitions=repetitions or (5 if full else 3),
        orgs=orgs,
        many_orgs=100 * orgs,
        meters=meters,
        jobs=jobs,
        messages=10_000 if full else 2_000,
        tpcb_s=20 if full else 4,
        search_steps=6 if full else 4,
        search_step_s=8.0 if full else 4.0,
        latency_s=15.0 if full else 6.0,
        ladder=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0) if full else (),
        batch_limits=(1, 10, 50, 100, 250, 500, 1_000, 2_000, 4_000),
        long_events=5_000_000,
        ledger_sizes=(2_500_000, 5_000_000, 10_000_000, 20_000_000),
    )
