"""The random walk of machine.py, short by default and long on request."""

import itertools
import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.payments.machine import PaymentsMachine
from tests.payments.world import World


def walk(world: World, *, examples: int, steps: int) -> None:
    """Walk, then hold everything that all walks did against Stripe once more."""

    class Machine(PaymentsMachine):
        pass

    Machine.world = world
    Machine.org_ids = itertools.count(2)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )
    world.assert_sound()


@pytest.mark.timeout(600)  # it takes some 15 s where nobody else works
def test_whatever_happens_the_balance_is_what_stripe_holds(world: World) -> None:
    walk(world, examples=15, steps=40)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_whatever_happens_for_long(world: World) -> None:
    walk(world, examples=int(os.environ.get("PAYMENTS_WALKS", "200")), steps=50)
