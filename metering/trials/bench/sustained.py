"""The highest load that is sustained, and what latency is like below it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from metering.sandbox.telephony.signal_listener import SignalListener
from metering.trials.bench.fixture import Fixture, checkpoint
from metering.trials.bench.open_loop import Observed, observe
from metering.trials.bench.plan import Plan
from metering.trials.bench.roles import meter_command, running_roles

WARM_UP_PER_SECOND: Final = 1_000.0
WARM_UP_S: Final = 2.0
MEASURED_AT: Final = 0.7
"""Of the highest sustained load: where latency is measured."""
IDLE_PER_SECOND: Final = 8.0
"""One event at a time: each is finished long before the next."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies at several loads."""

    sustained_per_second: float
    """The highest load that was sustained with the generator running beside it."""
    at_share: list[Observed]
    """At 70% of that, once per repetition."""
    lone: Observed
    """Single events on an idle system."""
    search: list[Observed]
    """Every load that was tried, in that order."""
    ladder: list[Observed]
    """At rising shares of the highest sustained load."""


def measure_latency(
    fixture: Fixture, plan: Plan, *, at_most_per_second: float, report: Callable[[int], None]
) -> Latency:
    """Search for the highest sustained load below `at_most_per_second` by halving, then measure at 70% of it.

    Each repetition begins just after a checkpoint, when WAL is dearest. The plan's orgs exist. Where nothing that was tried was
    sustained, latency is measured at 70% of the lowest load that wasn't.
    """
    with (
        running_roles(fixture.servers.data_dir, [meter_command(0)], log_level="debug") as roles,
        SignalListener(fixture.client) as listener,
    ):

        def load(per_second: float, load_s: float) -> Observed:
            seen = observe(fixture, roles, listener, per_second=per_second, seconds=load_s, orgs=plan.orgs)
            report(seen.count)
            return seen

        load(WARM_UP_PER_SECOND, WARM_UP_S)
        tried: list[Observed] = []
        sustained, too_high = 0.0, at_most_per_second
        for _ in range(plan.search_steps):
            tried.append(load((sustained + too_high) / 2, plan.search_step_s))
            if tried[-1].sustained:
                sustained = tried[-1].per_second
            else:
                too_high = tried[-1].per_second
        rate = (sustained or too_high) * MEASURED_AT
        measured: list[Observed] = []
        for _ in range(plan.repetitions):
            checkpoint(fixture)  # pages that are written for the first time after it go whole into the WAL
            measured.append(load(rate, plan.latency_s))
        lone = load(IDLE_PER_SECOND, plan.latency_s)
        ladder = [load(share * (sustained or too_high), plan.search_step_s) for share in plan.ladder]
    return Latency(sustained, measured, lone, tried, ladder)
