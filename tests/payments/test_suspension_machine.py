"""Gate and signals are always as a model of ten lines says, in the order of versions, and a suspended org is never charged.

The long test takes METERING_SUSPENSION_STEPS steps, others for each METERING_SUSPENSION_SEED.
"""

import logging
import os
import sys

import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.payments.reload_world import Site
from tests.payments.suspension_machine import SuspensionMachine

LONG_STEPS = int(os.environ.get("METERING_SUSPENSION_STEPS", "3000"))
LONG_SEED = int(os.environ.get("METERING_SUSPENSION_SEED", "1"))


def walk(site: Site, *, examples: int, steps_each: int, walk_seed: int | None = None) -> None:
    class Machine(SuspensionMachine):
        def __init__(self) -> None:
            super().__init__(site)

    run_state_machine_as_test(
        Machine if walk_seed is None else seed(walk_seed)(Machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps_each,
            database=None,  # each seed walks its own way
            phases=[each for each in Phase if each is not Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Gates that are reconciled are warned of, and here that is meant."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.mark.timeout(300)
def test_a_random_walk_finds_nothing(site: Site) -> None:
    walk(site, examples=5, steps_each=30)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_long_random_walk_finds_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    tally = SuspensionMachine.tally
    tally.clear()
    walks = 0
    while tally["steps"] < LONG_STEPS:
        walk(site, examples=10, steps_each=60, walk_seed=LONG_SEED * 1_000_000 + walks)
        walks += 1
        with capsys.disabled():
            sys.stdout.write(f"seed {LONG_SEED}, {walks} walks: {dict(sorted(tally.items()))}\n")
            sys.stdout.flush()
