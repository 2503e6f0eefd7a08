"""A completed call as JSON: what can't be right in any call is refused."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, Final

from metering.client.errors import InvalidField

_MAX_BYTES: Final = 1_000_000
"""Far more than can be billed. The meter keeps what is too large; but above this the server may hang up, for each try anew."""
_MAX_INT64: Final = 2**63 - 1
_MAX_DURATION_S: Final = 604_800
_MICROSECOND_S: Final = Decimal("0.000001")
_EXACT: Final = Context(prec=28)
"""The program's own decimal context may round or trap."""
_TIME_WITH_OFFSET: Final = re.compile(r"[^T ]+[T ].*(?:Z|[+-][0-9:]+)", re.IGNORECASE | re.DOTALL)


def encode_event(event: Mapping[str, object]) -> bytes:
    """The event as JSON. Raises InvalidField."""
    if not isinstance(event, Mapping):
        raise InvalidField("event", "must be a mapping of fields to values")
    fields = dict(event)
    for name, check in _REQUIRED.items():
        if name not in fields:
            raise InvalidField(name, "is missing")
        fields[name] = check(name, fields[name])
    for name, (kind, problem) in _OPTIONAL.items():
        value = fields.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InvalidField(name, problem)
    try:
        payload = _json(fields)
    except (TypeError, ValueError, RecursionError):
        for name, value in fields.items():
            try:
                _json({name: value})
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidField(str(name), f"can't be written as JSON: {error}") from error
        raise
    if len(payload) > _MAX_BYTES:
        raise InvalidField(
            "event", f"is {len(payload)} bytes long, and can't be billed: leave out some of its metadata"
        )
    return payload


def _json(fields: Mapping[str, object]) -> bytes:
    try:
        # As it is, not as escapes: those take up to three times the room, and there are limits to it.
        return _dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 hasn't
        return _dumps(fields, ensure_ascii=True).encode()


def _dumps(fields: Mapping[str, object], *, ensure_ascii: bool) -> str:
    return json.dumps(
        fields, ensure_ascii=ensure_ascii, allow_nan=False, separators=(",", ":"), default=_plain_mapping
    )


def _plain_mapping(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is none of its types")


def check_id(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_INT64:
        raise InvalidField(name, f"must be an integer from 1 to {_MAX_INT64}")
    return value


def _tier(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidField(name, "must be text")
    return value


def _direction(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in {"inbound", "outbound"}:
        raise InvalidField(name, "must be inbound or outbound")
    return value


def _duration_s(name: str, value: object) -> int | float:
    if isinstance(value, float):
        exact = Decimal(float.__repr__(value))  # as JSON writes it
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        exact = Decimal(value)
    else:
        raise InvalidField(name, "must be an int, a float or a Decimal, in seconds")
    if not exact.is_finite() or not 0 <= exact <= _MAX_DURATION_S:
        raise InvalidField(name, f"must be from 0 to {_MAX_DURATION_S} seconds")
    if exact != exact.quantize(_MICROSECOND_S, context=_EXACT):
        raise InvalidField(name, "must have at most 6 decimals: round it to microseconds")
    # At most 12 digits are left, and a float gives up to 15 back as they were.
    return value if isinstance(value, int) else float(exact)


def _ended_at(name: str, value: object) -> str:
    if isinstance(value, str):
        if not _TIME_WITH_OFFSET.fullmatch(value):
            raise InvalidField(
                name, "must be an ISO 8601 date and time with an offset, such as 2026-04-20T18:25:06.201Z"
            )
        return value
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidField(name, "must be an aware datetime, or text with an offset")
    try:
        at = value.astimezone(UTC)
    except OverflowError:
        raise InvalidField(name, "must be within the years 1 to 9999") from None
    precision = "microseconds" if at.microsecond % 1000 else "milliseconds"
    return at.isoformat(timespec=precision).replace("+00:00", "Z")


_REQUIRED: Final[dict[str, Callable[[str, object], object]]] = {
    "call_id": check_id,
    "org_id": check_id,
    "tier": _tier,
    "direction": _direction,
    "duration_seconds": _duration_s,
    "ended_at": _ended_at,
}
# Their kinds only, for a program's mistakes. What a caller sent along must never keep the call from being billed.
_OPTIONAL: Final[dict[str, tuple[type, str]]] = {
    "phone_number_id": (int, "must be an integer or None"),
    "phone_number_value": (str, "must be text or None"),
    "metadata": (Mapping, "must be a mapping or None"),
}
