"""Each field of a call event: what it takes, exactly, and what is refused by its name."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.rules.events import ENDS_TOO_LATE, MAX_METADATA_BYTES, CallEvent, latest_end, parse_event
from metering.rules.rejections import Reason, Rejection
from tests.rules.call_events import (
    EXAMPLE,
    PARSED,
    accepted,
    assert_names,
    event_text,
    fit_text,
    metadata_objects,
    rejected,
    with_value,
)

NOW = datetime(2026, 4, 20, 18, 30, tzinfo=UTC)
TEXT_FIELDS = ["tier", "phone_number_value", "metadata"]


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
