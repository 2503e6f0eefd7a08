"""Simulated calls: as telephony lets them start, and as it pushes them when they have ended.

Telephony's time is compressed, so that a demo of half a minute sees calls of minutes run side by side.
"""

import math
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Final

import msgspec

from metering.rules.rejections import Reason
from metering.rules.times import format_time
from metering.sandbox.telephony.malformed_events import Fields, encode

TIME_FACTOR: Final = 120
"""A call that is billed for so many seconds runs for one."""

RATES_CENTS_PER_MINUTE: Final = {"spark": 5, "bolt": 8, "storm-base": 10, "storm-extra": 14}
"""The tiers that calls are made on, billed by whole minutes, without a minimum or a connect fee."""
TIER_WEIGHTS: Final = (4, 3, 2, 1)
FREE_SHARE: Final = 0.02
MEDIAN_DURATION_S: Final = 70
DURATION_SIGMA: Final = 1.0
LONGEST_DURATION_MS: Final = 600_000

_ELSEWHERE: Final = timezone(timedelta(hours=5, minutes=30))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call that wants to start `at_s` seconds after the start of the simulation, and would run until `ended_s`."""

    at_s: float
    org_id: int
    call_id: int
    direction: str
    ended_s: float


@dataclass(frozen=True, slots=True)
class Push:
    """One event to push, `at_s` seconds after the start, if its call was let in; and what must come of it."""

    at_s: float
    payload: bytes
    org_id: int
    """The org that made the call, and its call id, whatever the payload says."""
    call_id: int
    tier: str
    duration_us: int
    repeated: bool = False
    """The call was pushed before, with the same content."""
    reason: Reason | None = None
    """Why it must be rejected; None if it mustn't."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call from its start to its end."""

    org_id: int
    call_id: int
    tier: str
    direction: str
    duration_ms: int
    started_s: float
    ended_at: datetime
    fields: Fields

    @classmethod
    def draw(
        cls, randomness: random.Random, org_id: int, call_id: int, started_s: float, start: datetime
    ) -> "Call":
        """A call that starts `started_s` seconds after `start`.

        Its event names the time when it ended here, and the duration for which it is billed: a start that is worked out from
        these lies before the simulation, which no price minds that is in force since ever.
        """
        duration_ms = 0
        if randomness.random() >= FREE_SHARE:
            drawn_s = randomness.lognormvariate(math.log(MEDIAN_DURATION_S), DURATION_SIGMA)
            duration_ms = min(max(int(drawn_s * 1000), 1), LONGEST_DURATION_MS)
        tier = randomness.choices(tuple(RATES_CENTS_PER_MINUTE), TIER_WEIGHTS)[0]
        ended_at = start + timedelta(seconds=started_s + duration_ms / 1000 / TIME_FACTOR)
        direction = randomness.choice(("inbound", "outbound"))
        number_id = randomness.randrange(100, 1000)
        fields: Fields = {
            "call_id": call_id,
            "org_id": org_id,
            "tier": tier,
            "direction": direction,
            "duration_seconds": _seconds(duration_ms),
            "ended_at": format_time(ended_at),
            "phone_number_id": number_id,
            "phone_number_value": f"+1555{number_id}{randomness.randrange(10_000):04d}",
        }
        if randomness.random() < 0.5:  # noqa: PLR2004 - every other call
            fields["metadata"] = {"trunk": randomness.choice(("ams-1", "fra-2", "nyc-1")), "codec": "opus"}
        return cls(org_id, call_id, tier, direction, duration_ms, started_s, ended_at, fields)

    @property
    def ended_s(self) -> float:
        return self.started_s + self.duration_ms / 1000 / TIME_FACTOR

    def attempt(self) -> Attempt:
        return Attempt(self.started_s, self.org_id, self.call_id, self.direction, self.ended_s)

    def lasting(self, duration_ms: int) -> "Call":
        """The same call, but with so many milliseconds in its event."""
        fields = self.fields | {"duration_seconds": _seconds(duration_ms)}
        return replace(self, duration_ms=duration_ms, fields=fields)

    def push(
        self,
        at_s: float,
        payload: bytes | None = None,
        *,
        repeated: bool = False,
        reason: Reason | None = None,
    ) -> Push:
        encoded = encode(self.fields) if payload is None else payload
        duration_us = self.duration_ms * 1000
        return Push(at_s, encoded, self.org_id, self.call_id, self.tier, duration_us, repeated, reason)

    def spelled_anew(self, randomness: random.Random) -> bytes:
        """The same call, byte for byte or as another program would write it."""
        if randomness.random() < 0.5:  # noqa: PLR2004 - every other time
            return encode(self.fields)
        respelled = self.fields | {"ended_at": _cut(self.ended_at).astimezone(_ELSEWHERE).isoformat()}
        return encode(dict(reversed(respelled.items())))

    def contradicted(self, randomness: random.Random) -> bytes:
        """The same call with something else in it, but at the same cost.

        Meters that work side by side may bill either of the two first: only so it is certain what the org pays.
        """
        start_of_minute_ms = (self.duration_ms - 1) // 60_000 * 60_000
        another_ms = start_of_minute_ms + (self.duration_ms - start_of_minute_ms) % 60_000 + 1
        changes: list[Fields] = [
            {"direction": "outbound" if self.direction == "inbound" else "inbound"},
            {"duration_seconds": _seconds(another_ms)},
            {"ended_at": format_time(self.ended_at - timedelta(seconds=1))},
            {"phone_number_value": "anonymous"},
            {"metadata": {"trunk": "lab"}},
        ]
        return encode(self.fields | randomness.choice(changes))


def _seconds(duration_ms: int) -> msgspec.Raw:
    whole, thousandths = divmod(duration_ms, 1000)
    return msgspec.Raw(f"{whole}.{thousandths:03d}".encode() if thousandths else str(whole).encode())


def _cut(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
