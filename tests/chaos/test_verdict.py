"""The verdict on a run: it finds whatever is lost, taken twice or left wrong, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
import redis

from metering.payments.outcomes import TopUpMade
from metering.rules.rejections import Reason
from metering.sandbox.calls import Push
from metering.sandbox.chaos.journal import Pushed, Told, TopUp, Wanted
from metering.sandbox.chaos.verdict import Evidence, Verdict, judge
from tests.conftest import Database
from tests.payments.world import START, World, make_world
from tests.spine.billing import event, prepare, price, push, run_meters

GIVEN_CENTS = 1_000


@dataclass
class Scene:
    """A world in which a run has just ended exact, and what was written down of it."""

    world: World
    pushed: Pushed
    wanted: Wanted

    def call(
        self, call_id: int, minutes: int = 1, *, reason: Reason | None = None, payload: bytes = b""
    ) -> Push:
        return Push(0.0, payload, 1, call_id, "bolt", minutes * 60_000_000, reason=reason)

    def wants(self, amount_cents: int, told: Told, *, straddles: bool = False) -> None:
        self.wanted.add(TopUp(1, amount_cents, told, straddles_restore=straddles))

    def judged(self) -> Verdict:
        self.world.mend_gates()
        self.world.clock.move(minutes=20)
        return judge(self.evidence())

    def evidence(self) -> Evidence:
        world = self.world
        return Evidence(
            world.engine,
            world.client,
            world.payments.stripe,
            world.sandbox.url,
            world.clock,
            START - timedelta(hours=1),
            {1: GIVEN_CENTS},
            [self.pushed],
            self.wanted,
        )


@pytest.fixture
def scene(database: Database, redis_client: redis.Redis) -> Iterator[Scene]:
    """Two calls billed, an event rejected, one top-up paid."""
    with make_world(database.engine, redis_client) as world:
        prepare(world.engine, org_ids=[], prices=[price("bolt", "0.08")])
        world.adjust(GIVEN_CENTS)
        world.save_card()
        scene = Scene(world, Pushed(), Wanted())
        ended_at = "2026-04-20T11:00:00Z"
        push(
            redis_client,
            [
                event(call_id=1, ended_at=ended_at),
                event(call_id=2, ended_at=ended_at, duration_seconds=60),
                b"x",
            ],
        )
        run_meters(world.engine, redis_client, clock=world.clock)
        for each in (
            scene.call(1, 2),
            scene.call(2),
            scene.call(3, reason=Reason.MALFORMED_JSON, payload=b"x"),
        ):
            scene.pushed.add(each, 0.0)
        world.top_up(700)
        scene.wants(700, Told.SUCCEEDED)
        yield scene


def test_a_run_in_which_all_is_well_is_exact(scene: Scene) -> None:
    verdict = scene.judged()
    assert verdict.problems == []
    assert verdict.exact
    assert (verdict.events, verdict.calls, verdict.billed_once) == (3, 2, 2)
    assert (verdict.charges, verdict.charged_cents, verdict.credits) == (1, 700, 1)


def test_a_call_that_was_pushed_and_is_not_billed_is_lost(scene: Scene) -> None:
    scene.pushed.add(scene.call(9), 0.0)
    verdict = scene.judged()
    assert (verdict.lost, verdict.billed_once, verdict.balances_wrong) == (1, 2, 1)
    assert not verdict.exact


def test_a_call_that_is_billed_at_another_cost_or_was_never_pushed_is_wrong(scene: Scene) -> None:
    del scene.pushed.calls[1, 1]
    scene.pushed.add(scene.call(2, 3), 0.0)
    verdict = scene.judged()
    assert (verdict.billed_wrong, verdict.billed_once, verdict.lost) == (2, 0, 0)
    assert not verdict.exact


def test_an_event_that_had_to_be_rejected_and_is_kept_nowhere_is_lost(scene: Scene) -> None:
    scene.pushed.add(scene.call(4, reason=Reason.MALFORMED_JSON, payload=b"y"), 0.0)
    scene.pushed.add(scene.call(2, reason=Reason.CONFLICTING_DUPLICATE, payload=b"z"), 0.0)
    verdict = scene.judged()
    assert verdict.rejections_lost == 2
    assert not verdict.exact


def test_a_charge_that_nobody_credited_is_lost(scene: Scene) -> None:
    scene.world.save_card("pm_card_authenticationRequired")
    made = scene.world.top_up(800).outcome
    assert isinstance(made, TopUpMade)
    scene.wants(800, Told.AUTHENTICATED)
    scene.world.sandbox.authenticate(made.payment_intent_id)  # and no webhook comes
    verdict = scene.judged()
    assert (verdict.credits_lost, verdict.balances_wrong) == (1, 1)
    assert not verdict.exact


def test_a_top_up_that_was_told_to_succeed_and_took_nothing_is_found(scene: Scene) -> None:
    scene.wants(900, Told.SUCCEEDED)
    verdict = scene.judged()
    assert verdict.not_charged == 1
    assert not verdict.exact


@pytest.mark.parametrize("told", [Told.SUCCEEDED, Told.NOTHING])
def test_a_top_up_wanted_once_and_charged_twice_is_found(scene: Scene, told: Told) -> None:
    scene.world.top_up(850)
    scene.world.top_up(850)
    scene.wants(850, told)
    verdict = scene.judged()
    assert verdict.charged_twice == 1
    assert not verdict.exact


def test_only_a_top_up_that_a_restore_forgot_may_be_charged_again(scene: Scene) -> None:
    scene.world.top_up(850)
    scene.world.top_up(850)
    scene.wants(850, Told.SUCCEEDED, straddles=True)
    verdict = scene.judged()
    assert (verdict.charged_twice, verdict.charged_again_after_restore) == (0, 1)
    assert verdict.exact


def test_a_top_up_that_nobody_wanted_or_that_was_told_to_be_declined_is_found(scene: Scene) -> None:
    scene.world.top_up(860)
    scene.world.top_up(870)
    scene.wants(870, Told.DECLINED)
    verdict = scene.judged()
    assert (verdict.charged_twice, verdict.charged_though_declined) == (1, 1)
    assert not verdict.exact


def test_a_gate_that_says_something_else_than_the_balance_is_found(scene: Scene) -> None:
    assert scene.judged().gates_wrong == 0
    scene.world.client.hset("gate:1", "state", "exhausted")
    verdict = judge(scene.evidence())
    assert verdict.gates_wrong == 1
    assert not verdict.exact


def test_a_balance_that_the_records_dont_explain_is_found(scene: Scene) -> None:
    scene.world.adjust(1)
    verdict = scene.judged()
    assert (verdict.balances_wrong, verdict.audit_violations) == (1, 0)
    assert not verdict.exact
