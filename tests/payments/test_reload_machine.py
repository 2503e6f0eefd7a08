"""No sequence of events charges more than the limit or twice, strands an org, or breaks an invariant.

Every run walks for some seconds. The long test takes METERING_RELOAD_STEPS steps, others for each METERING_RELOAD_SEED.
A failure is told as it was found; METERING_RELOAD_SHRINK=1 looks for a shorter one, which takes minutes.
"""

import logging
import os
import sys

import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.payments.reload_machine import ReloadMachine
from tests.payments.reload_world import Site

STEPS_EACH = 40
EXAMPLES = 12
LONG_EXAMPLES = 10
LONG_STEPS_EACH = 100
LONG_STEPS = int(os.environ.get("METERING_RELOAD_STEPS", "3000"))
LONG_SEED = int(os.environ.get("METERING_RELOAD_SEED", "1"))
SHRINK = bool(os.environ.get("METERING_RELOAD_SHRINK"))


@pytest.fixture
def quiet() -> None:
    """Thousands of warnings are meant to be logged here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def walk(site: Site, *, examples: int, steps_each: int, walk_seed: int | None = None) -> None:
    class Machine(ReloadMachine):
        def __init__(self) -> None:
            super().__init__(site)

    run_state_machine_as_test(
        Machine if walk_seed is None else seed(walk_seed)(Machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps_each,
            database=None,  # each seed walks its own way
            phases=[each for each in Phase if each is not Phase.shrink or SHRINK],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)  # it takes some 30 s where nobody else works
def test_a_random_walk_finds_nothing(site: Site, quiet: None) -> None:
    walk(site, examples=EXAMPLES, steps_each=STEPS_EACH)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_long_random_walk_finds_nothing(
    site: Site, quiet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = ReloadMachine.tally
    tally.clear()
    walks = 0
    while tally["steps"] < LONG_STEPS:
        walk(
            site, examples=LONG_EXAMPLES, steps_each=LONG_STEPS_EACH, walk_seed=LONG_SEED * 1_000_000 + walks
        )
        walks += 1
        with capsys.disabled():
            sys.stdout.write(f"seed {LONG_SEED}, {walks} walks: {dict(sorted(tally.items()))}\n")
            sys.stdout.flush()
