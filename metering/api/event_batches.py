"""Taking the body of a request with completed calls apart: each event as the bytes that came.

A batch in which one event isn't JSON is still a batch: the others are theirs who called. So where a parser gives up, the body is
parted by its brackets and strings alone.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_EVENTS: Final = msgspec.json.Decoder(list[Raw])
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]', re.DOTALL)
"""A string, also one without an end, or a sign that parts what is around it. Linear in time whatever the bytes."""
_SPACE: Final = b" \t\r\n"
_CLOSING: Final = {b"{": b"}", b"[": b"]"}


def part_events(body: bytes) -> list[bytes] | None:
    """The events of `{"events": [...]}`, as they came; None where the body is one event alone, or nothing that can be parted.

    An object that has a `call_id` too is an event, whose field `events` is one of those that are ignored.

    Raises ValueError where `events` is no list.
    """
    try:
        members = _MEMBERS.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _part_by_brackets(body)
    if "events" not in members or "call_id" in members:
        return None
    try:
        return [bytes(each) for each in _EVENTS.decode(members["events"])]
    except msgspec.DecodeError:
        raise ValueError("events is no list") from None


def _part_by_brackets(body: bytes) -> list[bytes] | None:
    """The same of what isn't JSON everywhere; None where brackets don't pair up, or nothing is to be found."""
    events: list[bytes] | None = None
    open_brackets: list[bytes] = []
    key, begins_at, in_events = b"", 0, False
    for token, at in _tokens(body):
        depth = len(open_brackets)
        if token in _CLOSING:
            if depth == 1 and token == b"[" and key == b'"events"' and not body[begins_at:at].strip(_SPACE):
                events, in_events, begins_at = [], True, at + 1
            elif depth == 0 and (token != b"{" or body[:at].strip(_SPACE)):
                return None
            open_brackets.append(_CLOSING[token])
        elif token in {b"}", b"]"}:
            if not open_brackets or open_brackets.pop() != token:
                return None
            if in_events and depth == 2:  # noqa: PLR2004 - the list in the object
                in_events = False
                _add(events, body[begins_at:at], last=True)
            if depth == 1:
                return None if body[at + 1 :].strip(_SPACE) else events
        elif in_events and depth == 2 and token == b",":  # noqa: PLR2004 - the list in the object
            _add(events, body[begins_at:at])
            begins_at = at + 1
        elif depth == 1 and token == b":":
            begins_at = at + 1
            if key == b'"call_id"':
                return None
        elif depth == 1 and token[:1] == b'"':
            key = token
    return None


def _tokens(body: bytes) -> Iterator[tuple[bytes, int]]:
    return ((found[0], found.start()) for found in _TOKEN.finditer(body))


def _add(events: list[bytes] | None, raw: bytes, *, last: bool = False) -> None:
    """Keep one event; after the last comma, or in an empty list, there is none."""
    assert events is not None  # noqa: S101 - it was made where the list began
    event = raw.strip(_SPACE)
    if event or not last:
        events.append(event)
