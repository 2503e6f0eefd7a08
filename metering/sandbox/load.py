"""A stream filled with calls, for measuring."""

import random
from collections.abc import Callable, Iterator
from typing import Final

import redis

from workers.stream import STREAM

CHUNK: Final = 1_000
DUPLICATE_SHARE: Final = 0.05
RECENT: Final = 10_000
"""Duplicates repeat one of so many latest calls, as a producer that is unsure does."""

_EVENT: Final = (
    '{"call_id":%d,"org_id":%d,"tier":"bolt","direction":"%s","duration_seconds":%d,'
    '"ended_at":"2026-04-20T18:25:06.201Z","phone_number_id":201,"phone_number_value":"+15551234567","metadata":{}}'
)


def events(count: int, *, orgs: int, first_call_id: int, seed: int) -> Iterator[str]:
    """`count` events spread evenly over orgs 1 to `orgs`, one in twenty of them a duplicate."""
    rng = random.Random(seed)  # noqa: S311 - to be repeatable, not secret
    recent: list[str] = []
    for number in range(count):
        if recent and rng.random() < DUPLICATE_SHARE:
            yield rng.choice(recent)
            continue
        event = _EVENT % (
            first_call_id + number,
            rng.randint(1, orgs),
            rng.choice(("inbound", "outbound")),
            rng.randint(1, 600),
        )
        if len(recent) < RECENT:
            recent.append(event)
        else:
            recent[number % RECENT] = event
        yield event


def fill(client: redis.Redis, load: Iterator[str], report: Callable[[int], None]) -> int:
    """Push all of `load`, telling `report` how many more there are in the stream; give their number."""
    pushed = 0
    while True:
        with client.pipeline(transaction=False) as pipeline:
            for _, event in zip(range(CHUNK), load, strict=False):
                pipeline.xadd(STREAM, {"event": event})
            count = len(pipeline)
            if count == 0:
                return pushed
            pipeline.execute()
        pushed += count
        report(count)
