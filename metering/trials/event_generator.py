"""A stream filled with calls, for measuring."""

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import accumulate
from typing import Final

import redis

from metering.runtime.names import STREAM

CHUNK: Final = 1_000
DUPLICATE_SHARE: Final = 0.05
RECENT: Final = 10_000
"""Duplicates repeat one of so many latest calls, as a producer that is unsure does."""

_EVENT: Final = (
    '{"call_id":%d,"org_id":%d,"tier":"bolt","direction":"%s","duration_seconds":%d,'
    '"ended_at":"2026-04-20T18:25:06.201Z","phone_number_id":201,"phone_number_value":"+15551234567","metadata":{}}'
)


class Traffic(StrEnum):
    """How calls are spread over orgs."""

    UNIFORM = "uniform"
    """Each org has as many."""
    ZIPF = "zipf"
    """The n-th largest has 1/n of what the largest has, as customers do: of 1,000 orgs the first has 13%."""
    SINGLE = "single"
    """One org has all."""


def event(call_id: int, org_id: int, direction: str, duration_s: int) -> str:
    """A call event as telephony pushes it."""
    return _EVENT % (call_id, org_id, direction, duration_s)


def events(
    count: int, *, orgs: int, first_call_id: int, seed: int, traffic: Traffic = Traffic.UNIFORM
) -> Iterator[str]:
    """`count` events spread over orgs 1 to `orgs`, one in twenty of them a duplicate."""
    rng = random.Random(seed)  # noqa: S311 - to be repeatable, not secret
    pick = _picker(traffic, orgs, rng)
    recent: list[str] = []
    for number in range(count):
        if recent and rng.random() < DUPLICATE_SHARE:
            yield rng.choice(recent)
            continue
        made = event(first_call_id + number, pick(), rng.choice(("inbound", "outbound")), rng.randint(1, 600))
        if len(recent) < RECENT:
            recent.append(made)
        else:
            recent[number % RECENT] = made
        yield made


def _picker(traffic: Traffic, orgs: int, rng: random.Random) -> Callable[[], int]:
    """What chooses the org of each call."""
    if traffic is Traffic.SINGLE:
        return lambda: 1
    if traffic is Traffic.ZIPF:
        up_to: Sequence[float] = list(accumulate(1 / rank for rank in range(1, orgs + 1)))
        return lambda: bisect_left(up_to, rng.random() * up_to[-1]) + 1
    return lambda: rng.randint(1, orgs)


def fill(client: redis.Redis, load: Iterator[str], report: Callable[[int], None]) -> int:
    """Push all of `load`, telling `report` how many more there are in the stream; give their number."""
    pushed = 0
    while True:
        with client.pipeline(transaction=False) as pipeline:
            for _, each in zip(range(CHUNK), load, strict=False):
                pipeline.xadd(STREAM, {"event": each})
            count = len(pipeline)
            if count == 0:
                return pushed
            pipeline.execute()
        pushed += count
        report(count)
