"""Taking a batch apart: each event as its bytes, and one that is broken alone."""

import json
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.api import event_batches
from metering.api.event_batches import part_events

SPACE: Final = st.sampled_from([b"", b" ", b"\n\t"])
JSON_VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def join(events: list[bytes], space: bytes = b"") -> bytes:
    between = space + b"," + space
    return (
        b'{"source":[1,{"events":2}],'
        + space
        + b'"events"'
        + space
        + b":["
        + space
        + between.join(events)
        + space
        + b"]}"
    )


@given(events=st.lists(JSON_VALUES.map(lambda value: json.dumps(value).encode())), space=SPACE)
def test_both_ways_part_what_is_json_alike(events: list[bytes], space: bytes) -> None:
    body = join(events, space)
    assert event_batches._part_by_brackets(body) == events
    try:
        assert part_events(body) == events
    except (msgspec.DecodeError, RecursionError):
        raise AssertionError("it must never fail") from None


@pytest.mark.parametrize(
    "broken",
    [
        b'{"phone_number_value":"\\ud800"}',
        b'{"call_id":01}',
        b'{"duration_seconds":NaN}',
        b'{"tier":"bolt",}',
        b"[" * 5_000 + b"]" * 5_000,
        b"{\xff}",
        b"oops",
        b"9" * 10_000,
        b"",
    ],
)
def test_a_broken_event_leaves_the_others_alone(broken: bytes) -> None:
    good = b'{"call_id":1,"note":"]},{\\"["}'
    assert part_events(join([good, broken, good])) == [good, broken, good]


@pytest.mark.parametrize(
    "body",
    [
        b"[1]",
        b"{",
        b"}",
        b'{"events":[1}',
        b'{"events":[1]}}',
        b'{"events":[1]} x',
        b'x {"events":[1, ]}',
        b'{"events":[1,"]}',
        b'{"call_id":01,"events":[2]}',
        b'{"events":[2],"call_id":01}',
        b'{"call_id":1}',
        b'{"other":[01]}',
    ],
)
def test_what_is_no_batch_stays_whole(body: bytes) -> None:
    assert part_events(body) is None


def test_a_list_may_be_empty_or_end_with_a_comma() -> None:
    assert event_batches._part_by_brackets(b'{"events":[ ]}') == []
    assert part_events(b'{"events":[1,]}') == [b"1"]


@pytest.mark.parametrize("body", [b'{"events":{}}', b'{"events":7}', b'{"events":null}'])
def test_events_that_are_no_list(body: bytes) -> None:
    with pytest.raises(ValueError, match="no list"):
        part_events(body)


@given(body=st.binary(max_size=200))
def test_nothing_else_is_ever_raised(body: bytes) -> None:
    event_batches._part_by_brackets(body)
    assert part_events(b"{" + body) is None or isinstance(part_events(b"{" + body), list)
