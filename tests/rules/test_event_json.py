"""An event as bytes: which are JSON, how many there may be, and that whatever comes gets a verdict."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metering.rules.events import MAX_EVENT_BYTES, parse_event
from metering.rules.rejections import Reason, Rejection
from tests.rules.call_events import EXAMPLE, PARSED, accepted, assert_names, event_text, rejected, with_value


@pytest.mark.parametrize(
    "members",
    [
        '"extra":null',
        '"extra":{"call_id":"x","deep":[[[[1e999]]]]}',
        '"extra":"\\u0000"',
        '"extra":"\\ud800","more\\udc00":1',
        '"":"😀"',
        '"Call_id":0',
        '"extra":' + "[" * 199 + "]" * 199,
    ],
)
def test_unknown_fields_are_ignored(members: str) -> None:
    raw = event_text(EXAMPLE)
    assert accepted(raw[:-1] + b"," + members.encode() + b"}") == PARSED
    assert accepted(b"{" + members.encode() + b"," + raw[1:]) == PARSED


def test_a_key_may_be_escaped_and_space_may_surround_all() -> None:
    raw = event_text(EXAMPLE).replace(b'"call_id":', b' \r\n"call\\u005fid"\t: ')
    assert accepted(b"\n " + raw + b" \r\n") == PARSED


def test_of_a_field_that_comes_twice_the_last_counts_and_both_are_checked() -> None:
    assert accepted(b'{"call_id":1,' + event_text(EXAMPLE)[1:]) == PARSED
    assert_names(rejected(event_text(EXAMPLE)[:-1] + b',"call_id":"x"}'), "call_id")
    twice = rejected(b'{"call_id":"x",' + event_text(EXAMPLE)[1:])
    assert twice.reason is Reason.INVALID_FIELD
    assert "call_id" in twice.detail


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"\x00",
        b"null",
        b"42",
        b'"{}"',
        b"[]",
        b"[" + event_text(EXAMPLE) + b"]",
        b"{",
        b"NaN",
        b"not json",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + event_text(EXAMPLE),
        event_text(EXAMPLE).decode().encode("utf-16"),
        event_text(EXAMPLE) + b"x",
        event_text(EXAMPLE) + event_text(EXAMPLE),
        event_text(EXAMPLE) + b"\x00",
        event_text(EXAMPLE)[:-1],
        event_text(EXAMPLE)[:-1] + b",}",
        event_text(EXAMPLE).replace(b'"', b"'"),
        event_text(EXAMPLE)[:-1] + b',"extra":"\xff"}',
        event_text(EXAMPLE)[:-1] + b',"\xff":1}',
        event_text(EXAMPLE)[:-1] + b',"extra":' + b"[" * 200 + b"]" * 200 + b"}",
        b"[" * MAX_EVENT_BYTES,
        b'{"a":' * 3000,
        b'"\\"' * 5000 + b"{" * 500,
    ],
)
def test_what_is_no_json_object_is_malformed(raw: bytes) -> None:
    assert rejected(raw).reason is Reason.MALFORMED_JSON


@pytest.mark.parametrize("field", list(EXAMPLE))
@pytest.mark.parametrize(
    "value",
    [
        "NaN", "Infinity", "-Infinity", "+1", "01", "1.", ".5", "1e", "0x10", "True", "", "'a'", "[1,]", '{"a":1,}',
        '"\\x"', '"\\u12"', '"\n"', '"\x00"', '"\x1f"', '"\ud800"', '"open', "[[]", "1 2", "/*c*/1",
    ],
)  # fmt: skip
def test_a_value_that_is_no_json_is_malformed(field: str, value: str) -> None:
    assert rejected(with_value(field, value)).reason is Reason.MALFORMED_JSON


def test_malformed_goes_before_invalid_and_too_large_before_both() -> None:
    assert rejected(b'{"call_id":"x",').reason is Reason.MALFORMED_JSON
    assert rejected(b'{"call_id":"x","extra":"\xff"}').reason is Reason.MALFORMED_JSON
    assert rejected(b'{"call_id":"x"' + b" " * MAX_EVENT_BYTES).reason is Reason.TOO_LARGE
    assert rejected(b"\xff" * (MAX_EVENT_BYTES + 1)).reason is Reason.TOO_LARGE


def test_an_event_may_have_16_kib_and_no_more() -> None:
    raw = event_text(EXAMPLE)
    full = raw + b" " * (MAX_EVENT_BYTES - len(raw))
    assert accepted(full) == PARSED
    assert rejected(full + b" ").reason is Reason.TOO_LARGE


def strict_json(raw: bytes) -> object:
    """What Python's own parser makes of it; ValueError where the JSON grammar is broken."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(raw.decode(), parse_constant=refuse, parse_int=Decimal, parse_float=str)


def is_json_object(raw: bytes) -> bool:
    try:
        return isinstance(strict_json(raw), dict)
    except ValueError:
        return False


PIECES = [b"", *(b'" \\ { } [ ] , : - + . e 0 1e9 null \\u0000 \\ud800 \\udc00 \xc3 NaN "metadata":'.split())]


@st.composite
def mutated_events(draw: st.DrawFn) -> bytes:
    raw = bytearray(event_text(EXAMPLE | {"metadata": r'{"a":["b\n\ud83d\ude00",-1.5e3,null,true]}'}))
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(raw)))
        end = start + draw(st.integers(0, 2))
        raw[start:end] = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
    return bytes(raw)


def texts(value: Any) -> Iterator[str]:
    """Every key and every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def check_verdict(raw: bytes) -> None:
    """Whatever the bytes: a verdict, `malformed_json` exactly where the grammar says so, nothing unfit for Postgres."""
    verdict = parse_event(raw)
    if isinstance(verdict, Rejection):
        assert verdict.detail
        assert (verdict.reason is Reason.MALFORMED_JSON) == (not is_json_object(raw))
        return
    assert is_json_object(raw)
    assert 0 <= verdict.duration_us <= 604_800_000_000
    for text in (verdict.tier, verdict.phone_number_value or "", *texts(json.loads(verdict.metadata))):
        assert "\0" not in text
        text.encode()  # no lone surrogates


@given(st.binary(max_size=200))
@example(b"\xed\xa0\x80")
@settings(deadline=None)
def test_arbitrary_bytes_get_a_verdict(raw: bytes) -> None:
    check_verdict(raw)


@given(mutated_events())
@settings(deadline=None, max_examples=500)
def test_mutated_events_get_the_verdict_of_the_json_grammar(raw: bytes) -> None:
    check_verdict(raw)
