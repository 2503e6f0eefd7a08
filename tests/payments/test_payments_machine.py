"""The random walk of machine.py, short by default and long on request (METERING_PAYMENTS_STEPS; random_walk.py)."""

import itertools
from collections import Counter

import pytest

from tests.payments.machine import PaymentsMachine
from tests.payments.random_walk import LongWalk, take_walk
from tests.payments.reload_world import ReloadWorld, Site

EXAMPLES = 8
STEPS_EACH = 40
LONG_EXAMPLES = 10
LONG_STEPS_EACH = 50
LONG = LongWalk.of("payments")


def walk(world: ReloadWorld, *, examples: int, steps_each: int, walk_seed: int | None = None) -> int:
    """Walk, then hold everything that all walks did against Stripe once more; give how many steps there were."""

    class Machine(PaymentsMachine):
        pass

    Machine.world = world
    Machine.org_ids = itertools.count(2)
    Machine.taken = 0
    shrink = LONG.shrink or walk_seed is None
    take_walk(Machine, examples=examples, steps_each=steps_each, walk_seed=walk_seed, shrink=shrink)
    world.assert_sound()
    return Machine.taken


@pytest.mark.timeout(600)  # it takes some 15 s where nobody else works
def test_whatever_happens_the_balance_is_what_stripe_holds(reloading: ReloadWorld, quiet: None) -> None:
    walk(reloading, examples=EXAMPLES, steps_each=STEPS_EACH)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_whatever_happens_for_long(site: Site, quiet: None, capsys: pytest.CaptureFixture[str]) -> None:
    tally: Counter[str] = Counter()

    def walk_on(walk_seed: int) -> Counter[str]:
        tally["steps"] += walk(
            site.fresh(), examples=LONG_EXAMPLES, steps_each=LONG_STEPS_EACH, walk_seed=walk_seed
        )
        return tally

    LONG.take(walk_on, capsys)
