"""The random walk of machine.py, short by default and long on request."""

import itertools
import os

import pytest
import stripe
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.payments.machine import PaymentsMachine
from tests.payments.world import World


def walk(world: World, monkeypatch: pytest.MonkeyPatch, *, examples: int, steps: int) -> None:
    """Walk, then hold everything that all walks did against Stripe once more."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.0)  # the SDK rests before it repeats

    class Machine(PaymentsMachine):
        pass

    Machine.world = world
    Machine.org_ids = itertools.count(2)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )
    world.assert_sound()


def test_whatever_happens_the_balance_is_what_stripe_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk(world, monkeypatch, examples=20, steps=40)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_whatever_happens_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(world, monkeypatch, examples=int(os.environ.get("PAYMENTS_WALKS", "500")), steps=50)
