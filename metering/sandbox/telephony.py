"""Simulated telephony: what a telephony layer would push, when, and its own record of what that must lead to.

Pure and seeded: the same arguments give the same calls. Nothing here asks the product's rules what a call costs; the record
would be no witness if it did.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

import msgspec

from metering.rules.rejections import Reason
from metering.rules.times import format_time

RATES_CENTS_PER_MINUTE: Final = {"spark": 5, "bolt": 8, "storm-base": 10, "storm-extra": 14}
"""The tiers that calls are made on, billed by whole minutes, without a minimum or a connect fee."""
TIER_WEIGHTS: Final = (4, 3, 2, 1)

DUPLICATE_SHARE: Final = 0.05
BROKEN_SHARE: Final = 0.01
LATE_SHARE: Final = 0.1
FREE_SHARE: Final = 0.02

MEDIAN_DURATION_S: Final = 70
DURATION_SIGMA: Final = 1.0
LONGEST_DURATION_MS: Final = 4 * 3_600_000
TYPICAL_CHARGE_CENTS: Final = 19
"""About what a call costs on average."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ELSEWHERE: Final = timezone(timedelta(hours=5, minutes=30))

_Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class Push:
    """One event to push, `at_s` seconds after the start, and what must come of it."""

    at_s: float
    payload: bytes
    org_id: int
    tier: str
    duration_us: int
    repeated: bool = False
    """The call was pushed before, with the same content."""
    reason: Reason | None = None
    """Why it must be rejected; None if it mustn't."""


@dataclass(slots=True)
class OrgRecord:
    """What an org's calls must have cost."""

    calls: int = 0
    minutes: int = 0
    cents: int = 0


@dataclass(slots=True)
class Record:
    """Telephony's own account of what it pushed, kept push by push: so it is right wherever the pushing ends."""

    pushed: int = 0
    orgs: dict[int, OrgRecord] = field(default_factory=dict)
    duplicates: int = 0
    free: int = 0
    """Calls of 0 seconds, each time they were pushed: there is nothing to tell the second time by."""
    rejections: Counter[Reason] = field(default_factory=Counter)

    def add(self, push: Push) -> None:
        """Take note of one event that was pushed."""
        self.pushed += 1
        if push.reason is not None:
            self.rejections[push.reason] += 1
        elif push.duration_us == 0:
            self.free += 1
        elif push.repeated:
            self.duplicates += 1
        else:
            minutes = (push.duration_us + 59_999_999) // 60_000_000
            org = self.orgs.setdefault(push.org_id, OrgRecord())
            org.calls += 1
            org.minutes += minutes
            org.cents += minutes * RATES_CENTS_PER_MINUTE[push.tier]


class Telephony:
    """A telephony layer in steady state: calls end at random, independently of each other, `rate` events a second on average.

    (Where calls start as a Poisson process they also end as one, whatever their durations.) Call ids repeat between orgs, because
    each org's calls are counted from the same number, but not between two starts. The first orgs are the busiest.
    """

    def __init__(
        self, org_ids: Sequence[int], *, start: datetime, seed: int, duration_s: float, rate: float
    ) -> None:
        if not org_ids or duration_s <= 0 or rate <= 0:
            raise ValueError("simulated telephony needs orgs, a duration and a rate above 0")
        self.org_ids = tuple(org_ids)
        self.start = start
        self.duration_s = duration_s
        self.rate = rate
        self._seed = seed
        self._weights = [1 / math.sqrt(rank + 2) for rank in range(len(self.org_ids))]
        started_s = (start - _EPOCH) // timedelta(seconds=1)
        self.missing_org_id = started_s
        """No org has this id, nor did an earlier start use it: whoever mends the cause of one run doesn't upset the next."""
        self.missing_tier = f"thunder-{started_s}"
        self._first_call_id = (start - _EPOCH) // timedelta(microseconds=1)

    def starting_balances_cents(self) -> dict[int, int]:
        """A balance for each org to begin with, in cents: most last longer than the calls do, a few don't."""
        randomness = random.Random(f"balances {self._seed}")  # noqa: S311 - to be repeatable, not secret
        likely_cents = self.rate * self.duration_s * TYPICAL_CHARGE_CENTS / sum(self._weights)
        return {
            org_id: (int(likely_cents * weight * randomness.uniform(0.8, 2.4)) // 100 + 1) * 100
            for org_id, weight in zip(self.org_ids, self._weights, strict=True)
        }

    def pushes(self) -> Iterator[Push]:
        """What to push, in order of time. The schedule doesn't wait for anybody."""
        waiting: list[tuple[float, int, Push]] = []  # by time, then in the order in which they were made
        numbers = itertools.count()
        for ended_s, pushes in self._completed_calls():
            while waiting and waiting[0][0] <= ended_s:
                yield heapq.heappop(waiting)[2]
            for push in pushes:
                heapq.heappush(waiting, (push.at_s, next(numbers), push))
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _completed_calls(self) -> Iterator[tuple[float, list[Push]]]:
        """When each call ends, and what is pushed because of it, then or later."""
        randomness = random.Random(self._seed)  # noqa: S311 - to be repeatable, not secret
        calls_per_s = self.rate / (1 + DUPLICATE_SHARE)
        next_call_ids = dict.fromkeys(self.org_ids, self._first_call_id)
        breakages = _breakages()
        ended_s = randomness.expovariate(calls_per_s)
        while ended_s < self.duration_s:
            org_id = randomness.choices(self.org_ids, self._weights)[0]
            call = _Call.draw(
                randomness, org_id, next_call_ids[org_id], self.start + timedelta(seconds=ended_s)
            )
            next_call_ids[org_id] += 1
            pushed_s = self._later(ended_s, 0.5, randomness) if randomness.random() < LATE_SHARE else ended_s
            yield ended_s, self._pushes_of(call, pushed_s, breakages, randomness)
            ended_s += randomness.expovariate(calls_per_s)

    def _pushes_of(
        self,
        call: "_Call",
        pushed_s: float,
        breakages: Iterator["Reason | _Breakage"],
        randomness: random.Random,
    ) -> list[Push]:
        fate = randomness.random()
        if fate >= BROKEN_SHARE + DUPLICATE_SHARE:
            return [call.push(pushed_s)]
        again_s = self._later(pushed_s, 1.0, randomness)
        if fate >= BROKEN_SHARE:
            return [call.push(pushed_s), call.push(again_s, call.spelled_anew(randomness), repeated=True)]
        breakage = next(breakages)
        if isinstance(breakage, _Breakage):
            return [call.push(pushed_s, breakage.of(call.fields), reason=breakage.reason)]
        if breakage is Reason.UNKNOWN_ORG:
            return [
                call.push(pushed_s, _encode(call.fields | {"org_id": self.missing_org_id}), reason=breakage)
            ]
        if breakage is Reason.UNKNOWN_TIER:
            return [call.push(pushed_s, _encode(call.fields | {"tier": self.missing_tier}), reason=breakage)]
        talked = call if call.duration_ms else call.lasting(1)
        return [talked.push(pushed_s), talked.push(again_s, talked.contradicted(randomness), reason=breakage)]

    def _later(self, at_s: float, mean_s: float, randomness: random.Random) -> float:
        return min(at_s + randomness.expovariate(1 / mean_s), max(at_s, self.duration_s))


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that has ended."""

    org_id: int
    tier: str
    duration_ms: int
    ended_at: datetime
    fields: _Fields

    @classmethod
    def draw(cls, randomness: random.Random, org_id: int, call_id: int, ended_at: datetime) -> "_Call":
        duration_ms = 0
        if randomness.random() >= FREE_SHARE:
            drawn_s = randomness.lognormvariate(math.log(MEDIAN_DURATION_S), DURATION_SIGMA)
            duration_ms = min(max(int(drawn_s * 1000), 1), LONGEST_DURATION_MS)
        tier = randomness.choices(tuple(RATES_CENTS_PER_MINUTE), TIER_WEIGHTS)[0]
        number_id = randomness.randrange(100, 1000)
        fields: _Fields = {
            "call_id": call_id,
            "org_id": org_id,
            "tier": tier,
            "direction": randomness.choice(("inbound", "outbound")),
            "duration_seconds": _seconds(duration_ms),
            "ended_at": format_time(ended_at),
            "phone_number_id": number_id,
            "phone_number_value": f"+1555{number_id}{randomness.randrange(10_000):04d}",
        }
        if randomness.random() < 0.5:  # noqa: PLR2004 - every other call
            fields["metadata"] = {"trunk": randomness.choice(("ams-1", "fra-2", "nyc-1")), "codec": "opus"}
        return cls(org_id, tier, duration_ms, ended_at, fields)

    def lasting(self, duration_ms: int) -> "_Call":
        fields = self.fields | {"duration_seconds": _seconds(duration_ms)}
        return _Call(self.org_id, self.tier, duration_ms, self.ended_at, fields)

    def push(
        self,
        at_s: float,
        payload: bytes | None = None,
        *,
        repeated: bool = False,
        reason: Reason | None = None,
    ) -> Push:
        encoded = _encode(self.fields) if payload is None else payload
        return Push(at_s, encoded, self.org_id, self.tier, self.duration_ms * 1000, repeated, reason)

    def spelled_anew(self, randomness: random.Random) -> bytes:
        """The same call, byte for byte or as another program would write it."""
        if randomness.random() < 0.5:  # noqa: PLR2004 - every other time
            return _encode(self.fields)
        respelled = self.fields | {"ended_at": _cut(self.ended_at).astimezone(_ELSEWHERE).isoformat()}
        return _encode(dict(reversed(respelled.items())))

    def contradicted(self, randomness: random.Random) -> bytes:
        """The same call with something else in it, but at the same cost.

        Meters that work side by side may bill either of the two first: only so it is certain what the org pays.
        """
        start_of_minute_ms = (self.duration_ms - 1) // 60_000 * 60_000
        another_ms = start_of_minute_ms + (self.duration_ms - start_of_minute_ms) % 60_000 + 1
        changes: list[_Fields] = [
            {"direction": "outbound" if self.fields["direction"] == "inbound" else "inbound"},
            {"duration_seconds": _seconds(another_ms)},
            {"ended_at": format_time(self.ended_at - timedelta(seconds=1))},
            {"phone_number_value": "anonymous"},
            {"metadata": {"trunk": "lab"}},
        ]
        return _encode(self.fields | randomness.choice(changes))


@dataclass(frozen=True, slots=True)
class _Breakage:
    """One way in which an event's bytes are wrong."""

    reason: Reason
    of: Callable[[_Fields], bytes]


def _breakages() -> Iterator[Reason | _Breakage]:
    """Every reason in turn, each time with the next of its ways; a bare reason where it isn't the bytes that are wrong."""
    ways: dict[Reason, Iterator[Reason | _Breakage]] = {
        reason: itertools.cycle(
            [_Breakage(reason, way) for way in BROKEN_WAYS.get(reason, {}).values()] or [reason]
        )
        for reason in Reason
        if reason is not Reason.UNPROCESSABLE  # takes an event that the product should manage, and can't
    }
    while True:
        for way in ways.values():
            yield next(way)


def _changed(**changes: object) -> Callable[[_Fields], bytes]:
    return lambda fields: _encode(fields | changes)


BROKEN_WAYS: Final[dict[Reason, dict[str, Callable[[_Fields], bytes]]]] = {
    Reason.MALFORMED_JSON: {
        "cut off": lambda fields: _encode(fields)[:-20],
        "not UTF-8": lambda fields: _encode(fields | {"phone_number_value": "#"}).replace(b"#", b"\xe9"),
        "not an object": lambda fields: b"[" + _encode(fields) + b"]",
    },
    Reason.INVALID_FIELD: {
        "no ended_at": lambda fields: _encode({key: fields[key] for key in fields if key != "ended_at"}),
        "call_id 0": _changed(call_id=0),
        "org_id in quotes": lambda fields: _encode(fields | {"org_id": str(fields["org_id"])}),
        "direction unheard of": _changed(direction="sideways"),
        "negative duration": _changed(duration_seconds=-1),
        "duration in words": _changed(duration_seconds="75 s"),
        "duration in tenths of a microsecond": _changed(duration_seconds=msgspec.Raw(b"75.0000001")),
        "longer than a week": _changed(duration_seconds=604_801),
        "ended_at without an offset": lambda fields: _encode(
            fields | {"ended_at": str(fields["ended_at"]).removesuffix("Z")}
        ),
        "ended_at far ahead": _changed(ended_at="2999-12-31T23:59:59Z"),
        "NUL in a caller id": _changed(phone_number_value="+1555\0"),
        "metadata that is a list": _changed(metadata=["opus"]),
        "metadata above 4 KiB": _changed(metadata={"note": "x" * 4096}),
    },
    Reason.TOO_LARGE: {
        "a whole trace along": _changed(trace="x" * 16_384),
        "far too large": _changed(trace="x" * 100_000),
    },
}
"""How an event's bytes are made wrong, by the reason for which they are then rejected (CONTRACT.md section 3)."""


def _encode(fields: _Fields) -> bytes:
    return msgspec.json.encode(fields)


def _seconds(duration_ms: int) -> msgspec.Raw:
    whole, thousandths = divmod(duration_ms, 1000)
    return msgspec.Raw(f"{whole}.{thousandths:03d}".encode() if thousandths else str(whole).encode())


def _cut(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
