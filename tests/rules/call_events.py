"""The contract's example of a call event, and events like it."""

import json
import re
from datetime import UTC, datetime

from hypothesis import strategies as st

from metering.rules.events import MAX_METADATA_BYTES, CallEvent, parse_event
from metering.rules.rejections import Reason, Rejection

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
"""Each value as its JSON text."""
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
