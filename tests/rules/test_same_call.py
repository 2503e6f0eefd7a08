"""Whether two events tell of the same call: whatever the spelling, and by every field."""

import json
from datetime import timedelta
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.rules.events import CallEvent, same_call
from tests.rules.call_events import EXAMPLE, PARSED, accepted, event_text, metadata_objects, with_value


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
