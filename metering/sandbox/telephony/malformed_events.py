"""How a telephony layer gets events wrong, and for which reason each is then rejected.

See docs/reference/call-events.md#rejected-events.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from metering.rules.rejections import Reason

Fields = dict[str, object]
"""An event before it is written as JSON."""


def encode(fields: Fields) -> bytes:
    """An event as JSON."""
    return msgspec.json.encode(fields)


@dataclass(frozen=True, slots=True)
class MalformedEvent:
    """One way in which an event's bytes are wrong."""

    reason: Reason
    of: Callable[[Fields], bytes]


def malformed_events() -> Iterator[Reason | MalformedEvent]:
    """Every reason in turn, each time with the next of its ways; a bare reason where it isn't the bytes that are wrong."""
    ways: dict[Reason, Iterator[Reason | MalformedEvent]] = {
        reason: itertools.cycle(
            [MalformedEvent(reason, way) for way in BROKEN_WAYS.get(reason, {}).values()] or [reason]
        )
        for reason in Reason
        if reason is not Reason.UNPROCESSABLE  # takes an event that the product should manage, and can't
    }
    while True:
        for way in ways.values():
            yield next(way)


def _changed(**changes: object) -> Callable[[Fields], bytes]:
    return lambda fields: encode(fields | changes)


BROKEN_WAYS: Final[dict[Reason, dict[str, Callable[[Fields], bytes]]]] = {
    Reason.MALFORMED_JSON: {
        "cut off": lambda fields: encode(fields)[:-20],
        "not UTF-8": lambda fields: encode(fields | {"phone_number_value": "#"}).replace(b"#", b"\xe9"),
        "not an object": lambda fields: b"[" + encode(fields) + b"]",
    },
    Reason.INVALID_FIELD: {
        "no ended_at": lambda fields: encode({key: fields[key] for key in fields if key != "ended_at"}),
        "call_id 0": _changed(call_id=0),
        "org_id in quotes": lambda fields: encode(fields | {"org_id": str(fields["org_id"])}),
        "direction unheard of": _changed(direction="sideways"),
        "negative duration": _changed(duration_seconds=-1),
        "duration in words": _changed(duration_seconds="75 s"),
        "duration in tenths of a microsecond": _changed(duration_seconds=msgspec.Raw(b"75.0000001")),
        "longer than a week": _changed(duration_seconds=604_801),
        "ended_at without an offset": lambda fields: encode(
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
"""How an event's bytes are made wrong, by the reason for which they are then rejected.

See docs/reference/call-events.md#rejected-events.
"""
