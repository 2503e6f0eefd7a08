"""No sequence of events charges more than the limit or twice, strands an org, or breaks an invariant.

Every run walks for some seconds, and for long on request (METERING_RELOAD_STEPS; random_walk.py).
"""

from collections import Counter

import pytest

from tests.payments.random_walk import LongWalk, take_walk
from tests.payments.reload_machine import ReloadMachine
from tests.payments.reload_world import Site

STEPS_EACH = 40
EXAMPLES = 6
LONG_EXAMPLES = 10
LONG_STEPS_EACH = 100
LONG = LongWalk.of("reload")


def walk(site: Site, *, examples: int, steps_each: int, walk_seed: int | None = None) -> None:
    take_walk(
        lambda: ReloadMachine(site),
        examples=examples,
        steps_each=steps_each,
        walk_seed=walk_seed,
        shrink=LONG.shrink,
    )


@pytest.mark.timeout(600)  # it takes some 30 s where nobody else works
def test_a_random_walk_finds_nothing(site: Site, quiet: None) -> None:
    walk(site, examples=EXAMPLES, steps_each=STEPS_EACH)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_long_random_walk_finds_nothing(
    site: Site, quiet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    ReloadMachine.tally.clear()

    def walk_on(walk_seed: int) -> Counter[str]:
        walk(site, examples=LONG_EXAMPLES, steps_each=LONG_STEPS_EACH, walk_seed=walk_seed)
        return ReloadMachine.tally

    LONG.take(walk_on, capsys)
