"""Holds on a clock that a test sets, and the ten lines that they must agree with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import redis
from redis.commands.core import Script

from metering.runtime.names import gate_key, hold_ends_key, holds_key
from metering.signals.gates import CallsByOrg
from metering.signals.hold_library import CODE
from metering.signals.holds import Holds

CLOCK: Final = "clock of the test"
START_MS: Final = 4_000_000_000_000
"""Ahead of Redis's own clock, so that keys don't expire by themselves: it is the functions that must forget."""
DAY_MS: Final = 86_400_000


def on_test_clock(lua: str) -> str:
    """A script that asks the test's clock instead of Redis's."""
    asked = f"redis.call('GET', '{CLOCK}')"
    changed = lua.replace(
        "redis.call('TIME')", f"{{string.sub({asked}, 1, -4), string.sub({asked}, -3) .. '000'}}"
    )
    assert changed != lua
    return changed


def put_on_test_clock(holder: object) -> None:
    """Have every script of an object ask the test's clock."""
    for name, value in vars(holder).items():
        if isinstance(value, Script) and "redis.call('TIME')" in str(value.script):
            setattr(holder, name, value.registered_client.register_script(on_test_clock(str(value.script))))


class Telephony:
    """Calls the functions as any client of Redis can."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def call(self, function: str, org_id: int, *arguments: object) -> list[Any]:
        answer: Any = self._client.fcall(
            function, 2, holds_key(org_id), hold_ends_key(org_id), *map(str, arguments)
        )
        return [answer[0].decode(), *answer[1:]]


def load_on_test_clock(client: redis.Redis) -> None:
    client.function_load(on_test_clock(CODE), replace=True)
    client.set(CLOCK, START_MS)


def holds_on_test_clock(client: redis.Redis) -> Holds:
    holds = Holds(client)
    put_on_test_clock(holds)
    return holds


def set_gate(
    client: redis.Redis, org_id: int, state: str = "open", balance_cents: int = 1_000, most: int | None = None
) -> None:
    client.delete(gate_key(org_id))
    client.hset(gate_key(org_id), mapping={"state": state, "balance_cents": balance_cents, "version": 1})
    if most is not None:
        client.hset(gate_key(org_id), "max_concurrent_calls", most)


@dataclass
class OrgModel:
    """What one org's holds must be. `held` maps a call to its cents and the end of its time."""

    state: str | None = None
    balance: int = 0
    most: int | None = None
    held: dict[int, tuple[int, int]] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    last_ms: int | None = None

    def ask(self, what: str, call: int, cents: int, ttl_s: int, now: int) -> str:
        """What comes of starting or renewing a call."""
        self.held = {id_: hold for id_, hold in self.held.items() if hold[1] > now - DAY_MS}
        own, seen = self.held.get(call), self.ended.get(call, 0) > now - DAY_MS
        if own and what == "start":
            return "granted"
        checks: list[tuple[str, Callable[[], bool]]] = [
            ("ended", lambda: not own and seen),
            ("suspended", lambda: not own and self.state == "suspended"),
            ("exhausted", lambda: self.state != "open" if what == "start" else not own and self.state is None),
            ("too_many_calls", lambda: what == "start" and self.most is not None and self.running(now) >= self.most),
            ("insufficient", lambda: cents > (own[0] if own else 0) and cents - (own[0] if own else 0) > self.available()),
            ("insufficient", lambda: not own and cents > self.available()),
        ]  # fmt: skip
        refusal = next((outcome for outcome, refuses in checks if refuses()), None)
        if refusal is None:
            self.held[call] = (cents, now + ttl_s * 1_000)
            self.last_ms = now
        return refusal or "granted"

    def end(self, calls: list[int], now: int) -> None:
        """Their events were seen; remembered where the org took a hold within the last day."""
        for call in calls:
            self.held.pop(call, None)
            if self.last_ms is not None and now - self.last_ms < DAY_MS:
                self.ended[call] = now

    def lapse(self, calls: list[int], now: int) -> None:
        self.held |= {
            call: (self.held[call][0], min(self.held[call][1], now)) for call in calls if call in self.held
        }

    def running(self, now: int) -> int:
        return sum(ends > now for _, ends in self.held.values())

    def available(self) -> int:
        return self.balance - sum(cents for cents, _ in self.held.values())

    def answer(self, outcome: str, now: int) -> list[object]:
        self.held = {id_: hold for id_, hold in self.held.items() if hold[1] > now - DAY_MS}
        return [outcome, self.available(), self.balance - self.available(), self.running(now)]


@dataclass
class Seen:
    """Calls whose events a meter has seen, for Gates."""

    billed: dict[int, list[int]] = field(default_factory=dict)
    rejected: dict[int, list[int]] = field(default_factory=dict)

    def ended(self) -> CallsByOrg:
        return self.billed

    def not_billed(self) -> CallsByOrg:
        return self.rejected
