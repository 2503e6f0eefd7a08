"""Gate and signals are always as a model of ten lines says, in the order of versions, and a suspended org is never charged.

Every run walks for some seconds, and for long on request (METERING_SUSPENSION_STEPS; random_walk.py).
"""

from collections import Counter

import pytest

from tests.payments.random_walk import LongWalk, take_walk
from tests.payments.reload_world import Site
from tests.payments.suspension_machine import SuspensionMachine

LONG = LongWalk.of("suspension")


def walk(site: Site, *, examples: int, steps_each: int, walk_seed: int | None = None) -> None:
    take_walk(
        lambda: SuspensionMachine(site),
        examples=examples,
        steps_each=steps_each,
        walk_seed=walk_seed,
        shrink=LONG.shrink,
    )


@pytest.mark.timeout(300)
def test_a_random_walk_finds_nothing(site: Site, quiet: None) -> None:
    walk(site, examples=5, steps_each=30)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_long_random_walk_finds_nothing(
    site: Site, quiet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    SuspensionMachine.tally.clear()

    def walk_on(walk_seed: int) -> Counter[str]:
        walk(site, examples=10, steps_each=60, walk_seed=walk_seed)
        return SuspensionMachine.tally

    LONG.take(walk_on, capsys)
