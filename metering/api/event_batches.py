"""Taking the body of a request with completed calls apart: each event as the bytes that came.

A batch in which one event isn't JSON is still a batch: the others are theirs who called. So where a parser gives up, the body is
parted by its brackets and strings alone.
"""

import re
from typing import Final

import msgspec
from msgspec import Raw

_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_EVENTS: Final = msgspec.json.Decoder(list[Raw])
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\],]', re.DOTALL)
"""A string, also one without an end, or a sign that parts what is around it. Linear in time whatever the bytes."""
_KEY: Final = re.compile(rb'\s*"([^"\\]*)"\s*:')
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
    members = _whole(body, 0, len(body), b"{")
    if members is None:
        return None
    values = {key[1]: (key.end(), end) for begin, end in members if (key := _KEY.match(body, begin, end))}
    if b"events" not in values or b"call_id" in values:
        return None
    spans = _whole(body, *values[b"events"], b"[")
    if spans is None:
        return None
    events = [body[begin:end].strip(_SPACE) for begin, end in spans]
    return events if events[-1] else events[:-1]  # after a last comma, or in an empty list, there is none


def _whole(body: bytes, begin: int, end: int, bracket: bytes) -> list[tuple[int, int]] | None:
    """Where the parts are between the commas of one list or object, if that is all there is from `begin` to `end`."""
    first = end - len(body[begin:end].lstrip(_SPACE))
    if body[first : first + 1] != bracket:
        return None
    closing: list[bytes] = []
    parts, part = [], first + 1
    for found in _TOKEN.finditer(body, first, end):
        token = found[0]
        if token in _CLOSING:
            closing.append(_CLOSING[token])
        elif token == b"," and len(closing) == 1:
            parts.append((part, found.start()))
            part = found.end()
        elif token in _CLOSING.values():
            if closing.pop() != token:
                return None
            if not closing:
                parts.append((part, found.start()))
                return None if body[found.end() : end].strip(_SPACE) else parts
    return None
