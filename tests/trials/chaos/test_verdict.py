"""The verdict on a run: it finds whatever is lost, taken twice or left wrong, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
import redis

from metering.payments.outcomes import TopUpMade
from metering.rules.rejections import Reason
from metering.sandbox.telephony.calls import Push
from metering.trials.chaos.journal import Pushed, Told, TopUp, Wanted
from metering.trials.chaos.verdict import Evidence, Verdict, judge
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

    def wants(self, amount_cents: int, told: Told, *, forgotten: bool = False) -> None:
        self.wanted.add(TopUp(1, amount_cents, told, forgotten=forgotten))

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
    with make_world(database, redis_client) as world:
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


def test_records_that_the_ledger_doesnt_bear_out_are_found_each_for_what_it_is(scene: Scene) -> None:
    """Each of these alone would make a run inexact; all at once, to spare as many servers."""
    pushed, world = scene.pushed, scene.world
    pushed.add(scene.call(9), 0.0)  # not billed
    pushed.add(scene.call(2, 3), 0.0)  # billed, at another cost
    del pushed.calls[1, 1]  # billed, and never pushed
    pushed.add(scene.call(4, reason=Reason.MALFORMED_JSON, payload=b"y"), 0.0)
    pushed.add(scene.call(2, reason=Reason.CONFLICTING_DUPLICATE, payload=b"z"), 0.0)
    scene.wants(900, Told.SUCCEEDED)  # and took nothing
    for told, forgotten, amount_cents in (
        (Told.SUCCEEDED, False, 850),
        (Told.NOTHING, False, 851),
        (Told.SUCCEEDED, True, 852),
    ):
        for _ in range(2):
            world.top_up(amount_cents)
        scene.wants(amount_cents, told, forgotten=forgotten)
    world.top_up(860)  # nobody wanted it
    world.top_up(870)
    scene.wants(870, Told.DECLINED)
    verdict = scene.judged()
    assert (verdict.lost, verdict.billed_once, verdict.billed_wrong) == (1, 0, 2)
    assert verdict.rejections_lost == 2
    assert (verdict.not_charged, verdict.charged_though_declined) == (1, 1)
    assert (verdict.charged_twice, verdict.charged_again) == (3, 1)
    assert verdict.balances_wrong == 1
    named = " ".join(verdict.problems)
    for part in (
        "call 9 was pushed",
        "call 2 is billed at",
        "call 1 is billed, and was never",
        "of 900 cents was told",
    ):
        assert part in named
    for amount_cents in (850, 851, 860, 870):
        assert f"of {amount_cents} cents" in named
    assert "852" not in named  # a restore forgot it: its second charge is credited too, and told apart
    assert not verdict.exact


def test_what_is_wrong_in_the_ledger_itself_is_found(scene: Scene) -> None:
    world = scene.world
    world.save_card("pm_card_authenticationRequired")
    made = world.top_up(800).outcome
    assert isinstance(made, TopUpMade)
    scene.wants(800, Told.AUTHENTICATED)
    world.sandbox.authenticate(made.payment_intent_id)  # and no webhook comes
    world.adjust(1)  # nobody knows why
    world.mend_gates()
    world.client.hset("gate:1", "state", "exhausted")
    verdict = judge(scene.evidence())
    assert (verdict.credits_lost, verdict.credits, verdict.charges) == (1, 1, 2)
    assert (verdict.balances_wrong, verdict.gates_wrong, verdict.audit_violations) == (1, 1, 0)
    assert not verdict.exact
