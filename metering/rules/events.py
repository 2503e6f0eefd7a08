"""Call events as telephony pushes them, read and checked (docs/reference/call-events.md#fields)."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from metering.rules.rejections import Reason, Rejection

MAX_EVENT_BYTES = 16 * 1024
MAX_METADATA_BYTES = 4096
MAX_DURATION_S = 604_800
MAX_DURATION_US = MAX_DURATION_S * 1_000_000
MAX_AHEAD = timedelta(minutes=5)
MAX_TIER_CHARS = 200
MAX_PHONE_NUMBER_CHARS = 64
MAX_METADATA_DEPTH = 64
"""Metadata goes out to customers again, and the strictest of the usual JSON parsers stop at 64 levels."""
MAX_EVENT_DEPTH = 200
"""Well below the 1000 levels of calls that Python allows, so that parsing never runs out of stack."""

_MAX_INT64 = 2**63 - 1
_DURATION_DECIMALS = 6
_DURATION_DIGITS = len(str(MAX_DURATION_S))
_FIRST_INSTANT = datetime.min.replace(tzinfo=UTC)


class CallEvent(msgspec.Struct, frozen=True, gc=False):
    """One completed call that may be billed as far as its event alone can tell."""

    call_id: int
    org_id: int
    tier: str
    direction: str
    duration_us: int
    ended_at: datetime
    """Aware, in UTC."""
    phone_number_id: int | None
    phone_number_value: str | None
    metadata: str
    """The JSON text of the object as it came; "{}" when there was none."""


_Id = Annotated[int, Meta(ge=1, le=_MAX_INT64)]


class _Fields(msgspec.Struct, gc=False):
    """An event as msgspec checks it; what is Raw is checked afterwards."""

    call_id: _Id
    org_id: _Id
    tier: Annotated[str, Meta(max_length=MAX_TIER_CHARS)]
    direction: Literal["inbound", "outbound"]
    duration_seconds: Raw
    ended_at: str
    phone_number_id: Annotated[int, Meta(ge=-_MAX_INT64 - 1, le=_MAX_INT64)] | None = None
    phone_number_value: Annotated[str, Meta(max_length=MAX_PHONE_NUMBER_CHARS)] | None = None
    metadata: Raw = Raw(b"{}")


EVENT_FIELDS = frozenset(field.name for field in msgspec.structs.fields(_Fields))
"""The names of an event's fields."""

_NO_NUL = "without NUL or half a surrogate pair"
_RULES = {
    "call_id": f"must be an integer from 1 to {_MAX_INT64}",
    "org_id": f"must be an integer from 1 to {_MAX_INT64}",
    "tier": f"must be text of at most {MAX_TIER_CHARS} characters, {_NO_NUL}",
    "direction": "must be inbound or outbound",
    "duration_seconds": f"must be a number from 0 to {MAX_DURATION_S}, at most {_DURATION_DECIMALS} decimals",
    "ended_at": "must be an ISO 8601 date and time with an offset, at most 5 minutes ahead of the clock",
    "phone_number_id": "must be a 64-bit integer or null",
    "phone_number_value": f"must be null or text of at most {MAX_PHONE_NUMBER_CHARS} characters, {_NO_NUL}",
    "metadata": (
        f"must be null or an object of at most {MAX_METADATA_BYTES} bytes, "
        f"nested at most {MAX_METADATA_DEPTH} deep, {_NO_NUL}"
    ),
}

_FIELDS = msgspec.json.Decoder(_Fields)
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_REQUIRED = [field.name for field in msgspec.structs.fields(_Fields) if field.required]
_FIELD_DECODERS = {field.name: msgspec.json.Decoder(field.type) for field in msgspec.structs.fields(_Fields)}

# Possessive, and content with no closing quote: linear in time whatever the bytes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
# Python's reader takes 18.5Z for half a second past 18:00, any separator, and whatever follows a NUL: the shape is
# settled first. A decimal fraction of anything but seconds is refused.
_INSTANT = re.compile(r"[0-9W-]++[T ](?:[0-9:]{6,8}(?:[.,][0-9]++)?|[0-9:]{2,5})(?:Z|[+-][0-9:]{2,5})")
# Backslashes pair up from the left: after an even number of them (or none) the next one starts an escape.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a whole surrogate pair
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    rb"|\\.",
    re.DOTALL,
)


class _RefusedError(Exception):
    """Carries a rejection out of the checks."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


def parse_event(raw: bytes) -> CallEvent | Rejection:
    """Read one event as it came from the stream, or say why it cannot be billed.

    Never raises, whatever the bytes. The reason is the first that applies of `too_large`, `malformed_json` and
    `invalid_field`. Whether the call has ended by now, whoever bills it must see (`latest_end`).
    """
    try:
        _check_text(raw)
        fields = _FIELDS.decode(raw)
        if b"\\" in raw:
            _check_escapes(fields)
        duration_us = _duration_us(str(fields.duration_seconds, "utf-8"))
        return CallEvent(
            fields.call_id,
            fields.org_id,
            fields.tier,
            fields.direction,
            duration_us,
            _ended_at(fields.ended_at, duration_us),
            fields.phone_number_id,
            fields.phone_number_value,
            _metadata(bytes(fields.metadata)),
        )
    except _RefusedError as refused:
        return refused.rejection
    except msgspec.DecodeError as error:
        # msgspec refuses half a surrogate pair anywhere. In an unknown field it does no harm; in ours it is
        # as bad as NUL, which gets through here and is then refused by the field's name.
        whole = _ESCAPE.sub(lambda escape: rb"\u0000" if escape[1] else escape[0], raw)
        return parse_event(whole) if whole != raw else _explain(raw, error)


def latest_end(now: datetime) -> datetime:
    """When a call may have ended at the latest; an event that says later is refused, with `ENDS_TOO_LATE`."""
    return now + MAX_AHEAD


def same_call(a: CallEvent, b: CallEvent) -> bool:
    """Whether one event is a duplicate of the other, or contradicts it (docs/reference/money-rules.md#one-call-costs-once).

    Metadata is compared as JSON values: the order of keys and the spelling of numbers (1, 1.0, 10e-1) don't
    matter.
    """
    if a == b:
        return True
    if a.metadata == b.metadata or msgspec.structs.replace(a, metadata=b.metadata) != b:
        return False
    return bool(_EXACT_JSON.decode(a.metadata) == _EXACT_JSON.decode(b.metadata))


def _check_text(raw: bytes) -> None:
    if len(raw) > MAX_EVENT_BYTES:
        raise _RefusedError(Reason.TOO_LARGE, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are allowed")
    if not raw.isascii():
        try:
            raw.decode()  # msgspec does not look at what it skips
        except UnicodeDecodeError as error:
            raise _RefusedError(Reason.MALFORMED_JSON, f"not UTF-8 at byte {error.start}") from None
    if _deeper_than(MAX_EVENT_DEPTH, raw):
        raise _RefusedError(Reason.MALFORMED_JSON, f"nested more than {MAX_EVENT_DEPTH} deep")


def _deeper_than(limit: int, raw: bytes) -> bool:
    """Whether brackets outside of strings nest deeper than the limit."""
    # Two cheap tests settle nearly every case.
    if len(raw) <= 2 * limit or raw.count(b"{") + raw.count(b"[") <= limit:
        return False
    depth = 0
    for byte in _STRING.sub(b"", raw):
        if byte in b"{[":
            depth += 1
            if depth > limit:
                return True
        elif byte in b"}]":
            depth -= 1
    return False


def _invalid(field: str) -> _RefusedError:
    return _RefusedError(Reason.INVALID_FIELD, f"{field} {_RULES[field]}")


ENDS_TOO_LATE = _invalid("ended_at").rejection
"""Of an event whose call ends in the future, by Postgres's clock."""


def _check_escapes(fields: _Fields) -> None:
    """An escape is the only way for NUL to get into JSON text; text and jsonb columns can't hold it."""
    if "\0" in fields.tier:
        raise _invalid("tier")
    if "\0" in (fields.phone_number_value or ""):
        raise _invalid("phone_number_value")
    if _NUL.search(bytes(fields.metadata)):
        raise _invalid("metadata")


def _duration_us(token: str) -> int:
    """The exact microseconds of the JSON value in `token`, which need not be a number."""
    if token.isdigit() and len(token) <= _DURATION_DIGITS:
        duration_us = int(token) * 1_000_000
    else:
        try:
            digits, exponent = _exact(token)
        except ValueError:
            raise _invalid("duration_seconds") from None
        # The sizes are settled before 10 is raised to any power: 1e999999999 is a short text.
        if digits[0] == "-" or exponent < -_DURATION_DECIMALS or len(digits) + exponent > _DURATION_DIGITS:
            raise _invalid("duration_seconds")
        duration_us = int(digits) * 10 ** (exponent + _DURATION_DECIMALS)
    if duration_us > MAX_DURATION_US:
        raise _invalid("duration_seconds")
    return duration_us


def _exact(number: str) -> tuple[str, int]:
    """A JSON number of any size as its significant digits and a power of ten; equal numbers make equal pairs.

    ValueError for what is not a number, or has an exponent of thousands of digits.
    """
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise ValueError("not a number")
    sign, whole, fraction, power = match.groups(default="")
    digits = (whole + fraction).rstrip("0")
    significant = digits.lstrip("0")
    if not significant:
        return "0", 0
    return sign + significant, int(power or "0") + len(whole) - len(digits)


def _ended_at(text: str, duration_us: int) -> datetime:
    if not _INSTANT.fullmatch(text):
        raise _invalid("ended_at")
    try:
        ended_at = datetime.fromisoformat(text)
        if ended_at.tzinfo is not UTC:
            ended_at = ended_at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid("ended_at") from None
    # Pricing goes by the start, which must exist too.
    if ended_at.year == 1 and ended_at - _FIRST_INSTANT < timedelta(microseconds=duration_us):
        raise _invalid("ended_at")
    return ended_at


def _metadata(raw: bytes) -> str:
    if raw in (b"{}", b"null"):
        return "{}"
    if raw[0] != ord("{") or len(raw) > MAX_METADATA_BYTES or _deeper_than(MAX_METADATA_DEPTH, raw):
        raise _invalid("metadata")
    return raw.decode()


def _explain(raw: bytes, error: msgspec.DecodeError) -> Rejection:
    """Why msgspec refused an event: it stops at the first wrong field, when the rest may not even be JSON."""
    try:
        members = _MEMBERS.decode(raw)
    except msgspec.ValidationError:
        return Rejection(Reason.MALFORMED_JSON, "not a JSON object")
    except msgspec.DecodeError as malformed:
        return Rejection(Reason.MALFORMED_JSON, str(malformed))
    for name in _REQUIRED:
        if name not in members:
            return Rejection(Reason.INVALID_FIELD, f"{name} is missing")
    for name, decoder in _FIELD_DECODERS.items():
        try:
            decoder.decode(members.get(name, b"null"))
        except msgspec.DecodeError:
            return _invalid(name).rejection
    # Only a field that comes twice and is wrong the first time gets here; msgspec's own words name it.
    return Rejection(Reason.INVALID_FIELD, str(error))


# A number becomes a tuple, which no other JSON value does: so 1 is 1.0, but not true, and nothing is rounded.
_EXACT_JSON = json.JSONDecoder(parse_int=_exact, parse_float=_exact)
