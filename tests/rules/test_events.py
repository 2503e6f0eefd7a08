import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metering.rules.events import (
    ENDS_TOO_LATE,
    MAX_EVENT_BYTES,
    MAX_METADATA_BYTES,
    CallEvent,
    latest_end,
    parse_event,
    same_call,
)
from metering.rules.rejections import Reason, Rejection

NOW = datetime(2026, 4, 20, 18, 30, tzinfo=UTC)

# The contract's example, each value as its JSON text.
EXAMPLE = {
    "call_id": "987654321",
    "org_id": "42",
    "tier": '"bolt"',
    "direction": '"outbound"',
    "duration_seconds": "75",
    "ended_at": '"2026-04-20T18:25:06.201Z"',
    "phone_number_id": "201",
    "phone_number_value": '"+15551234567"',
    "metadata": "{}",
}
PARSED = CallEvent(
    call_id=987654321,
    org_id=42,
    tier="bolt",
    direction="outbound",
    duration_us=75_000_000,
    ended_at=datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC),
    phone_number_id=201,
    phone_number_value="+15551234567",
    metadata="{}",
)
TEXT_FIELDS = ["tier", "phone_number_value", "metadata"]


def event_text(members: dict[str, str]) -> bytes:
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}").encode(
        "utf-8", "surrogatepass"
    )


def with_value(field: str, value: str) -> bytes:
    """The example with one value, given as JSON text, in place of its own."""
    return event_text(EXAMPLE | {field: value})


def accepted(raw: bytes) -> CallEvent:
    event = parse_event(raw)
    assert isinstance(event, CallEvent), event
    return event


def rejected(raw: bytes) -> Rejection:
    rejection = parse_event(raw)
    assert isinstance(rejection, Rejection), rejection
    return rejection


def assert_names(rejection: Rejection, field: str) -> None:
    assert rejection.reason is Reason.INVALID_FIELD
    assert re.match(rf"{field} (must be|is missing)", rejection.detail), rejection.detail


def test_the_contract_s_example() -> None:
    assert accepted(event_text(EXAMPLE)) == PARSED


@pytest.mark.parametrize("field", ["phone_number_id", "phone_number_value", "metadata"])
def test_an_optional_field_may_be_absent_or_null(field: str) -> None:
    absent = {"phone_number_id": None, "phone_number_value": None, "metadata": "{}"}[field]
    expected = msgspec.structs.replace(PARSED, **{field: absent})
    members = dict(EXAMPLE)
    del members[field]
    assert accepted(event_text(members)) == expected
    assert accepted(with_value(field, "null")) == expected


@pytest.mark.parametrize("field", ["call_id", "org_id", "tier", "direction", "duration_seconds", "ended_at"])
def test_a_required_field_may_not_be_absent_or_null(field: str) -> None:
    members = dict(EXAMPLE)
    del members[field]
    assert rejected(event_text(members)) == Rejection(Reason.INVALID_FIELD, f"{field} is missing")
    assert_names(rejected(with_value(field, "null")), field)


@pytest.mark.parametrize("field", list(EXAMPLE))
@pytest.mark.parametrize("value", ["true", "false", '["x"]', "[]", "1.5e400", '"\\u0000"', '"\\ud800"', '""'])
def test_no_field_takes_a_value_of_another_kind(field: str, value: str) -> None:
    if (field, value) in {("tier", '""'), ("phone_number_value", '""')}:
        accepted(with_value(field, value))
    else:
        assert_names(rejected(with_value(field, value)), field)


@pytest.mark.parametrize("field", ["call_id", "org_id"])
@pytest.mark.parametrize(("value", "number"), [("1", 1), (str(2**63 - 1), 2**63 - 1)])
def test_the_bounds_of_an_id_are_in(field: str, value: str, number: int) -> None:
    assert getattr(accepted(with_value(field, value)), field) == number


@pytest.mark.parametrize("field", ["call_id", "org_id"])
@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-0",
        "-1",
        str(2**63),
        str(2**64),
        str(2**64 + 1),
        "9" * 5000,
        "42.0",
        "42e0",
        "4.2",
        '"42"',
        "{}",
        "1e999",
    ],
)
def test_what_is_no_id_is_refused(field: str, value: str) -> None:
    assert_names(rejected(with_value(field, value)), field)


@pytest.mark.parametrize("number", [0, -1, 2**63 - 1, -(2**63)])
def test_a_phone_number_id_is_any_64_bit_integer(number: int) -> None:
    assert accepted(with_value("phone_number_id", str(number))).phone_number_id == number


@pytest.mark.parametrize("value", [str(2**63), str(-(2**63) - 1), "1.0", '"1"', "{}"])
def test_what_is_no_phone_number_id_is_refused(value: str) -> None:
    assert_names(rejected(with_value("phone_number_id", value)), "phone_number_id")


@pytest.mark.parametrize("text", ["anonymous", "sip:bob@example.com", "😀" * 64, "\x7f", "+1 (555) 123-4567"])
def test_a_phone_number_is_any_text(text: str) -> None:
    for ensure_ascii in (True, False):
        raw = with_value("phone_number_value", json.dumps(text, ensure_ascii=ensure_ascii))
        assert accepted(raw).phone_number_value == text


@pytest.mark.parametrize("value", ['"' + "5" * 65 + '"', '"' + "😀" * 65 + '"', "15551234567", "{}"])
def test_what_is_no_phone_number_is_refused(value: str) -> None:
    assert_names(rejected(with_value("phone_number_value", value)), "phone_number_value")


@pytest.mark.parametrize("tier", ["spark", "no such tier", "ü", "t" * 200])
def test_any_tier_is_taken_here(tier: str) -> None:
    assert accepted(with_value("tier", json.dumps(tier))).tier == tier


@pytest.mark.parametrize("value", ['"' + "t" * 201 + '"', "7", "{}"])
def test_what_is_no_tier_is_refused(value: str) -> None:
    assert_names(rejected(with_value("tier", value)), "tier")


def test_both_directions() -> None:
    assert accepted(with_value("direction", '"inbound"')).direction == "inbound"
    assert accepted(with_value("direction", '"outbound"')).direction == "outbound"


@pytest.mark.parametrize("value", ['"Outbound"', '"internal"', '"inbound "', "1", "{}"])
def test_no_other_direction(value: str) -> None:
    assert_names(rejected(with_value("direction", value)), "direction")


@pytest.mark.parametrize(
    ("value", "duration_us"),
    [
        ("0", 0),
        ("-0", 0),
        ("0.0", 0),
        ("-0.0e7", 0),
        ("0e999999999999999999999999", 0),
        ("0e-999999999999999999999999", 0),
        ("0.000001", 1),
        ("1e-6", 1),
        ("10e-7", 1),
        ("0.001", 1_000),
        ("75.0000000", 75_000_000),
        ("75." + "0" * 9000, 75_000_000),
        ("75.25", 75_250_000),
        ("75.123456", 75_123_456),
        ("7.5E+1", 75_000_000),
        ("7500e-2", 75_000_000),
        ("604799.999999", 604_799_999_999),
        ("604800", 604_800_000_000),
        ("6.048e5", 604_800_000_000),
        ("604800.000000000", 604_800_000_000),
        ("6048" + "0" * 9000 + "e-8998", 604_800_000_000),
    ],
)
def test_a_duration_is_read_exactly(value: str, duration_us: int) -> None:
    assert accepted(with_value("duration_seconds", value)).duration_us == duration_us


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "-0.000001",
        "-1e-999999999",
        "604800.000001",
        "604801",
        "1000000",
        "1e6",
        "1e999999999",
        "1e" + "9" * 9000,
        "1e-" + "9" * 9000,
        "1e-7",
        "1e-999999999",
        "75.0000001",
        "75.0000000000000000000000000000001",
        "9" * 9000,
        "0." + "9" * 9000,
        '"75"',
        '"\N{ARABIC-INDIC DIGIT SEVEN}"',
        "{}",
        '{"seconds":75}',
    ],
)
def test_what_is_no_duration_is_refused(value: str) -> None:
    assert_names(rejected(with_value("duration_seconds", value)), "duration_seconds")


@given(st.decimals(min_value=0, max_value=604_800, places=6), st.integers(-30, 30))
@settings(deadline=None)
def test_a_duration_is_the_same_in_every_spelling(seconds: Decimal, shift: int) -> None:
    _, digits, exponent = seconds.as_tuple()
    assert isinstance(exponent, int)
    spelled = f"{int(''.join(map(str, digits)))}e{exponent}"
    shifted = f"{seconds.scaleb(shift):f}e{-shift}"
    expected = int(seconds * 1_000_000)
    for text in (f"{seconds:f}", spelled, shifted):
        assert accepted(with_value("duration_seconds", text)).duration_us == expected


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-04-20T18:25:06Z", "2026-04-20T18:25:06"),
        ("2026-04-20T18:25:06.2Z", "2026-04-20T18:25:06.200000"),
        ("2026-04-20T18:25:06.201999Z", "2026-04-20T18:25:06.201999"),
        ("2026-04-20T18:25:06.2019999999Z", "2026-04-20T18:25:06.201999"),
        ("2026-04-20T20:25:06+02:00", "2026-04-20T18:25:06"),
        ("2026-04-20T18:25:06-00:00", "2026-04-20T18:25:06"),
        ("2026-04-20T00:25:06-0530", "2026-04-20T05:55:06"),
        ("2026-04-20 18:25:06+00:00", "2026-04-20T18:25:06"),
        ("20260420T182506Z", "2026-04-20T18:25:06"),
        ("2026-04-20T18:25:06,5Z", "2026-04-20T18:25:06.500000"),
        ("20260420T182506.5+02", "2026-04-20T16:25:06.500000"),
        ("2026-04-20T18:25Z", "2026-04-20T18:25:00"),
        ("2026-04-20T1825Z", "2026-04-20T18:25:00"),
        ("2026-04-20T18Z", "2026-04-20T18:00:00"),
        ("2026-W17-1T18:25:06Z", "2026-04-20T18:25:06"),
        ("2024-02-29T23:59:59.999-12:00", "2024-03-01T11:59:59.999000"),
        ("1999-02-01T00:00:32+02:00", "1999-01-31T22:00:32"),
    ],
)
def test_an_end_is_an_instant_in_utc(text: str, utc: str) -> None:
    ended_at = accepted(with_value("ended_at", json.dumps(text))).ended_at
    assert ended_at.tzinfo is UTC
    assert ended_at == datetime.fromisoformat(utc).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-04-20",
        "2026-04-20Z",
        "2026-04-20T18:25:06",
        "2026-04-20T18:25:06+24:00",
        "2026-04-20T18:25:06Z\n",
        "2026-04-20T18:25:06Z\0",
        "2026-04-20x18:25:06Z",
        "2026-04-20T18:25:06 Z",
        "2026-04-20T18:25:06.Z",
        "2026-04-20T18:25.5Z",
        "2026-04-20T18.5Z",
        "2026-04-20T18:25:06+02:00:30",
        "2026-04-20\ud80018:25:06Z",
        "2026-02-29T18:25:06Z",
        "2026-04-20T25:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-04-20T18:25:0\N{ARABIC-INDIC DIGIT SIX}Z",
        "1776709506",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "0000-01-01T00:00:00Z",
        "T" * 8000,
    ],
)
def test_what_is_no_end_is_refused(text: str) -> None:
    assert_names(rejected(with_value("ended_at", json.dumps(text))), "ended_at")


@pytest.mark.parametrize("value", ["1776709506", "1776709506.201", "{}"])
def test_an_end_is_not_a_number(value: str) -> None:
    assert_names(rejected(with_value("ended_at", value)), "ended_at")


def test_a_call_may_end_5_minutes_ahead_of_the_clock_and_no_more() -> None:
    """Whoever bills it compares it with Postgres's clock: tests/spine/test_ends_ahead.py."""
    assert latest_end(NOW) == NOW + timedelta(minutes=5)
    assert_names(ENDS_TOO_LATE, "ended_at")
    assert isinstance(parse_event(with_value("ended_at", '"2999-12-31T23:59:59Z"')), CallEvent)


def test_the_start_of_a_call_must_exist() -> None:
    at_the_edge = EXAMPLE | {"ended_at": '"0001-01-01T00:01:00Z"'}
    event = accepted(event_text(at_the_edge | {"duration_seconds": "60"}))
    assert event.ended_at - timedelta(microseconds=event.duration_us) == datetime.min.replace(tzinfo=UTC)
    assert_names(rejected(event_text(at_the_edge | {"duration_seconds": "60.000001"})), "ended_at")


@pytest.mark.parametrize(
    "value",
    [
        '{"outcome":"AGENT"}',
        '{ "b" : 1.50 ,\n\t"a" : [ true , null , {} ] }',
        '{"n":1e400,"i":' + "9" * 3000 + "}",
        r'{"path":"C:\\u0000","\\\\u0000":"\\"}',
        '{"k":"\u00e9😀","\\u00e9":"\\ud83d\\ude00\\/\\n"}',
        '{"same":1,"same":2}',
        '{"brackets":"' + "[" * 2000 + '\\"[{"}',
        '{"pad":"' + "x" * (MAX_METADATA_BYTES - len('{"pad":""}')) + '"}',
        '{"wide":[' + ",".join(["[]"] * 500) + "]}",
        '{"deep":' + "[" * 63 + "]" * 63 + "}",
    ],
)
def test_metadata_is_kept_as_it_came(value: str) -> None:
    assert accepted(with_value("metadata", value)).metadata == value


@pytest.mark.parametrize(
    "value",
    [
        "[{}]",
        '"{}"',
        "1",
        '{"pad":"' + "x" * (MAX_METADATA_BYTES - len('{"pad":""}') + 1) + '"}',
        '{"pad":"' + "é" * (MAX_METADATA_BYTES // 2) + '"}',
        '{"a":"\\u0000"}',
        '{"\\u0000":1}',
        '{"a":[{"b":["x\\u0000y"]}]}',
        '{"a":"\\\\\\u0000"}',
        '{"a":"\\ud800"}',
        '{"\\udfff":1}',
        '{"a":["\\ude00\\ud83d"]}',
        '{"a":"\\ud83d\\u0041"}',
        '{"deep":' + "[" * 64 + "]" * 64 + "}",
        '{"a":' * 65 + "1" + "}" * 65,
    ],
)
def test_what_is_no_metadata_is_refused(value: str) -> None:
    assert_names(rejected(with_value("metadata", value)), "metadata")


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


def test_a_detail_fits_a_text_column() -> None:
    rejection = Rejection(Reason.UNKNOWN_TIER, "tier a\0b\ud800c" + "é" * 1000)
    assert rejection.detail.startswith("tier a\\x00b\\ud800cééé")
    assert len(rejection.detail) == 500


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


fit_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | fit_text,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(fit_text, values, max_size=4),
    max_leaves=12,
)
metadata_objects = st.dictionaries(fit_text, json_values, max_size=5).filter(
    lambda metadata: len(json.dumps(metadata)) <= MAX_METADATA_BYTES
)
ids = st.integers(1, 2**63 - 1)
events = st.fixed_dictionaries(
    {
        "call_id": ids,
        "org_id": ids,
        "tier": fit_text.map(lambda text: text[:200]),
        "direction": st.sampled_from(["inbound", "outbound"]),
        "duration_seconds": st.integers(0, 604_800),
        "ended_at": st.datetimes(
            min_value=datetime(1, 2, 1),  # noqa: DTZ001 - Hypothesis wants naive bounds
            max_value=datetime(2026, 4, 20),  # noqa: DTZ001
            timezones=st.sampled_from([UTC]),
        ).map(datetime.isoformat),
    },
    optional={
        "phone_number_id": st.none() | st.integers(-(2**63), 2**63 - 1),
        "phone_number_value": st.none() | fit_text.map(lambda text: text[:64]),
        "metadata": st.none() | metadata_objects,
    },
)


@given(events, st.booleans())
@settings(deadline=None)
def test_what_goes_in_comes_back(sent: dict[str, Any], ensure_ascii: bool) -> None:
    event = parse_event(json.dumps(sent, ensure_ascii=ensure_ascii).encode())
    if isinstance(event, Rejection):
        # Only a metadata object that is longer in UTF-8 than in ASCII escapes is refused: nothing else is too long.
        assert_names(event, "metadata")
        assert len(json.dumps(sent["metadata"], ensure_ascii=ensure_ascii).encode()) > MAX_METADATA_BYTES
        return
    assert event.call_id == sent["call_id"]
    assert event.org_id == sent["org_id"]
    assert event.tier == sent["tier"]
    assert event.direction == sent["direction"]
    assert event.duration_us == sent["duration_seconds"] * 1_000_000
    assert event.ended_at == datetime.fromisoformat(sent["ended_at"])
    assert event.phone_number_id == sent.get("phone_number_id")
    assert event.phone_number_value == sent.get("phone_number_value")
    assert json.loads(event.metadata) == (sent.get("metadata") or {})


@pytest.mark.parametrize("field", TEXT_FIELDS)
@given(text=st.text(st.characters() | st.sampled_from("\0\ud83d\ude00\\u0d8"), max_size=30))
@settings(deadline=None)
def test_no_text_field_takes_nul_or_half_a_surrogate_pair(field: str, text: str) -> None:
    value = json.dumps({"k": [text]} if field == "metadata" else text)
    verdict = parse_event(with_value(field, value))
    arrives = json.loads(json.dumps(text))  # two escaped halves side by side are a whole pair
    if re.search("[\0\ud800-\udfff]", arrives):
        assert isinstance(verdict, Rejection)
        assert_names(verdict, field)
    else:
        assert isinstance(verdict, CallEvent)
        stored = getattr(verdict, field)
        assert (json.loads(stored)["k"][0] if field == "metadata" else stored) == arrives


def with_metadata(text: str) -> CallEvent:
    return msgspec.structs.replace(PARSED, metadata=text)


@given(metadata_objects, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_same_call_in_another_key_order(metadata: dict[str, Any], shuffle: Random) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            shuffle.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    event = with_metadata(json.dumps(metadata))
    assert same_call(event, event)
    assert same_call(event, with_metadata(json.dumps(shuffled(metadata), indent=1, ensure_ascii=False)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":2}', '{ "b":2, "a":1 }'),
        ('{"a":1}', '{"a":1.0}'),
        ('{"a":1}', '{"a":10e-1}'),
        ('{"a":0}', '{"a":-0.0}'),
        ('{"a":1e999999999}', '{"a":10e999999998}'),
        ('{"a":1e-99999999999999999999}', '{"a":0.1e-99999999999999999998}'),
        ('{"a":"é"}', '{"a":"\\u00e9"}'),
        ('{"a":[{"b":1,"c":2}]}', '{"a":[{"c":2,"b":1}]}'),
    ],
)
def test_the_same_metadata_in_another_spelling(one: str, other: str) -> None:
    assert same_call(with_metadata(one), with_metadata(other))
    assert same_call(with_metadata(other), with_metadata(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{}", '{"a":null}'),
        ('{"a":1}', '{"a":true}'),
        ('{"a":0}', '{"a":false}'),
        ('{"a":1}', '{"a":"1"}'),
        ('{"a":1}', '{"a":-1}'),
        ('{"a":1}', '{"a":10}'),
        ('{"a":1}', '{"a":["1",0]}'),
        ('{"a":null}', '{"a":false}'),
        ('{"a":[1,2]}', '{"a":[2,1]}'),
        ('{"a":0.1}', '{"a":0.1000000000000000000000000000001}'),
        ('{"a":9007199254740993}', '{"a":9007199254740992}'),
        ('{"a":1e400}', '{"a":1e401}'),
        ('{"a":""}', '{"a":{}}'),
    ],
)
def test_other_metadata_is_another_call(one: str, other: str) -> None:
    assert not same_call(with_metadata(one), with_metadata(other))
    assert not same_call(with_metadata(other), with_metadata(one))


CHANGES = {
    "call_id": 1,
    "org_id": 1,
    "tier": "spark",
    "direction": "inbound",
    "duration_us": 75_000_001,
    "ended_at": PARSED.ended_at + timedelta(microseconds=1),
    "phone_number_id": None,
    "phone_number_value": None,
    "metadata": '{"a":1}',
}


def test_every_field_is_changed_below() -> None:
    assert list(CHANGES) == [field.name for field in msgspec.structs.fields(CallEvent)]


@pytest.mark.parametrize("field", list(CHANGES))
@pytest.mark.parametrize("metadata", ["{ }", "{}"])
def test_any_other_field_is_another_call(field: str, metadata: str) -> None:
    changed = msgspec.structs.replace(with_metadata(metadata), **{field: CHANGES[field]})
    assert not same_call(PARSED, changed)
    assert not same_call(changed, PARSED)


def test_the_same_end_at_another_offset_is_the_same_call() -> None:
    first = accepted(event_text(EXAMPLE))
    again = accepted(with_value("ended_at", '"2026-04-20T20:25:06.201000+02:00"'))
    assert same_call(first, again)
