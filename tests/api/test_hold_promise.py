"""The promise of holds, walked over: calls that each take a hold over HTTP never take a balance below zero.

See docs/reference/holds.md#the-promise. Longer walks: METERING_HOLD_STEPS=2000 METERING_HOLD_SEED=7 with -m long.
"""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import httpx
import pytest

from db.ledger.prices import PriceError, set_price
from db.postgres.engine import transaction
from metering.rules.steps import Step
from metering.signals.holds import Holds
from tests.api.site import TELEPHONY_TOKEN, Site
from tests.spine.billing import event, prepare, price, push, running_meters
from tests.waiting import wait_until
from workers.stream import backlog

TELEPHONY: Final = {"Authorization": f"Bearer {TELEPHONY_TOKEN}"}
TIERS: Final = ("bolt", "fee", "steps")
STEPS: Final = (Step(600, 0), Step(1_800, 300_000), Step(None, 90_000))


@dataclass
class RunningCall:
    """A call as its switch knows it."""

    tier: str
    started_at: datetime
    longest_s: int
    held_cents: int


@dataclass
class Walk:
    """One org, its calls, and ten lines that say what is held."""

    site: Site
    chance: random.Random
    calls: dict[int, RunningCall] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))
    done: dict[str, int] = field(default_factory=dict)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Ask until it is answered: a busy machine may take longer than the server waits."""
        while (answer := self.site.http.post(path, json=body, headers=TELEPHONY)).status_code == 503:
            pass
        return answer

    def start(self) -> None:
        call_id, tier = next(self.ids), self.chance.choice(TIERS)
        asked_at = self.site.world.clock()
        body = {"call_id": call_id, "org_id": 1, "direction": "inbound", "tier": tier}
        body["seconds"] = self.chance.choice([1, 30, 60, 61, 300, 3_600, 86_400])
        answer = self.post("/v1/calls", body)
        if answer.status_code == 201:
            told = answer.json()
            assert told["max_duration_seconds"] <= body["seconds"]
            # Not 60 s: this clock stands still, and a price that is set a moment later would be in force from then on.
            started_at = asked_at + timedelta(milliseconds=self.chance.choice([0, 1, 30_000, 59_999]))
            self.calls[call_id] = RunningCall(
                tier, started_at, told["max_duration_seconds"], told["held_cents"]
            )
        else:
            assert answer.status_code in {402, 403}, answer.text
        self.count(f"start {answer.status_code}")

    def renew(self) -> None:
        call_id, call = self.pick()
        body = {"org_id": 1, "direction": "inbound", "tier": call.tier}
        body |= {"started_at": call.started_at.isoformat(), "seconds": self.chance.choice([60, 900, 7_200])}
        answer = self.post(f"/v1/calls/{call_id}/renew", body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        call.longest_s, call.held_cents = told["max_duration_seconds"], told["held_cents"]
        self.count(f"renewed{' final' * told['final']}")

    def end(self) -> None:
        """Its event comes: as long as it may have lasted, or shorter, once or twice."""
        call_id, call = self.pick()
        longest_us = call.longest_s * 1_000_000
        duration_us = self.chance.choice([0, 1, longest_us, longest_us, self.chance.randrange(longest_us)])
        ended_at = call.started_at + timedelta(microseconds=duration_us)
        self.site.world.clock.at = max(self.site.world.clock(), ended_at)
        told = event(
            call_id=call_id,
            tier=call.tier,
            direction="inbound",
            duration_seconds=duration_us / 1_000_000,
            ended_at=ended_at.isoformat(),
        )
        before = self.site.world.balance()
        push(self.site.world.client, [told] * self.chance.choice([1, 1, 2]))
        wait_until(lambda: backlog(self.site.world.client).length == 0, limit_s=60, every_s=0.005)
        charged = before - self.site.world.balance()
        assert charged <= call.held_cents, (call, charged, told)
        del self.calls[call_id]
        self.count("ended")

    def cancel(self) -> None:
        call_id, _ = self.pick()
        self.site.http.delete(f"/v1/calls/{call_id}?org_id=1", headers=TELEPHONY).raise_for_status()
        del self.calls[call_id]

    def change_price(self) -> None:
        """From 60 s ahead on: dearer or cheaper, of the tier or of this org alone."""
        tier = self.chance.choice(TIERS)
        terms: dict[str, int] = {
            "increment_first_s": self.chance.choice([1, 30, 60]),
            "increment_next_s": self.chance.choice([1, 6, 60]),
            "minimum_s": self.chance.choice([0, 45, 600]),
            "connect_fee_microusd": self.chance.choice([0, 4_999, 120_000]),
        }
        new = price(tier, self.chance.choice(["0", "0.004999", "0.08", "0.31", "1.2"]), **terms)
        if self.chance.random() < 0.3:
            new = replace(new, rate_microusd_per_minute=STEPS[-1].rate_microusd_per_minute, steps=STEPS)
        if self.chance.random() < 0.3:
            new = replace(new, org_id=1)
        try:
            with transaction(self.site.world.engine) as connection:
                set_price(connection, new, self.site.world.clock)
        except PriceError:
            return  # another one is set from that very moment on
        self.count("price")
        # It is what the next calls may come under: those that ask before it is in force, and start after.
        self.site.world.clock.move(seconds=self.chance.choice([0, 10, 40]))
        self.start()
        self.start()

    def top_up(self) -> None:
        self.site.world.adjust(self.chance.choice([1, 7, 50, 900]))

    def suspend(self) -> None:
        self.site.world.suspend_org()
        self.start()
        if self.calls:
            self.renew()
        self.site.world.resume_org()

    def wait(self) -> None:
        self.site.world.clock.move(seconds=self.chance.choice([1, 30, 59, 60, 200]))

    def pick(self) -> tuple[int, RunningCall]:
        call_id = self.chance.choice(sorted(self.calls))
        return call_id, self.calls[call_id]

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def step(self) -> str:
        always = ["start", "start", "start", "change_price", "top_up", "suspend", "wait", "wait"]
        with_calls = ["renew", "renew", "end", "end", "end", "end", "cancel"]
        what = self.chance.choice(always + with_calls if self.calls else always)
        getattr(self, what)()
        return what

    def check(self, what: str) -> None:
        world = self.site.world
        balance, held = world.balance(), sum(call.held_cents for call in self.calls.values())
        (totals,) = Holds(world.client).totals([1])
        (gate,) = world.payments.gates.read([1])
        assert balance >= 0, (what, balance)
        assert (totals.held_cents, totals.running_calls) == (held, len(self.calls)), what
        assert gate.balance_cents == balance, what
        assert balance - held >= 0, (what, balance, held)


def walk(site: Site, seed: int, steps: int) -> dict[str, int]:
    world = site.world
    walking = Walk(site, random.Random(seed))
    first = [price("bolt", "0.08"), price("fee", "0.02", connect_fee_microusd=35_000, minimum_s=30)]
    first.append(replace(price("steps", "0.09"), steps=STEPS))
    prepare(world.engine, org_ids=[], prices=first)
    world.adjust(300)
    with running_meters(world.engine, world.client, clock=world.clock):
        for number in range(steps):
            what = walking.step()
            walking.check(f"seed {seed}, step {number}: {what} {json.dumps(walking.done)}")
    return walking.done


def test_no_call_takes_the_balance_below_zero(site: Site) -> None:
    done = walk(site, 1, 80)
    assert {"start 201", "start 402", "start 403", "ended", "price"} <= done.keys(), done


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_no_call_takes_the_balance_below_zero_for_long(site: Site) -> None:
    steps = int(os.environ.get("METERING_HOLD_STEPS", "600"))
    seed = int(os.environ.get("METERING_HOLD_SEED", "2"))
    done = walk(site, seed, steps)
    assert {"renewed final", "start 402"} <= done.keys(), done
