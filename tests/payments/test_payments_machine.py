"""The random walk of machine.py, short by default and long on request (CONTRIBUTING.md, "Walk for long").

The long test takes METERING_PAYMENTS_STEPS steps, others for each METERING_PAYMENTS_SEED.
"""

import itertools
import logging
import os
import sys

import pytest
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.payments.machine import PaymentsMachine
from tests.payments.reload_world import ReloadWorld, Site

EXAMPLES = 15
STEPS_EACH = 40
LONG_EXAMPLES = 10
LONG_STEPS_EACH = 50
LONG_STEPS = int(os.environ.get("METERING_PAYMENTS_STEPS", "3000"))
LONG_SEED = int(os.environ.get("METERING_PAYMENTS_SEED", "1"))
SHRINK = bool(os.environ.get("METERING_PAYMENTS_SHRINK"))


@pytest.fixture
def quiet() -> None:
    """Thousands of warnings are meant to be logged here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def walk(world: ReloadWorld, *, examples: int, steps_each: int, walk_seed: int | None = None) -> int:
    """Walk, then hold everything that all walks did against Stripe once more; give how many steps there were."""

    class Machine(PaymentsMachine):
        pass

    Machine.world = world
    Machine.org_ids = itertools.count(2)
    Machine.taken = 0
    run_state_machine_as_test(
        Machine if walk_seed is None else seed(walk_seed)(Machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps_each,
            deadline=None,
            database=None,  # each seed walks its own way
            phases=[each for each in Phase if each is not Phase.shrink or SHRINK or walk_seed is None],
            suppress_health_check=list(HealthCheck),
        ),
    )
    world.assert_sound()
    return Machine.taken


@pytest.mark.timeout(600)  # it takes some 15 s where nobody else works
def test_whatever_happens_the_balance_is_what_stripe_holds(reloading: ReloadWorld, quiet: None) -> None:
    walk(reloading, examples=EXAMPLES, steps_each=STEPS_EACH)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_whatever_happens_for_long(site: Site, quiet: None, capsys: pytest.CaptureFixture[str]) -> None:
    steps = walks = 0
    while steps < LONG_STEPS:
        walk_seed = LONG_SEED * 1_000_000 + walks
        steps += walk(site.fresh(), examples=LONG_EXAMPLES, steps_each=LONG_STEPS_EACH, walk_seed=walk_seed)
        walks += 1
        with capsys.disabled():
            sys.stdout.write(f"seed {LONG_SEED}, {walks} walks: {steps} steps\n")
            sys.stdout.flush()
