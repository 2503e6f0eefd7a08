"""A second reader of call events: it knows docs/reference/call-events.md#fields and Python's own `json`, and nothing of ours."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import partial
from typing import Any, Final

NOW: Final = datetime(2026, 4, 20, 18, 30, tzinfo=UTC)
MAX_INT64: Final = 2**63 - 1
FIELDS: Final = (
    *("call_id", "org_id", "tier", "direction", "duration_seconds", "ended_at"),
    *("phone_number_id", "phone_number_value", "metadata"),
)
OPTIONAL: Final = frozenset({"phone_number_id", "phone_number_value", "metadata"})
MAX_DEPTH: Final = 64
SUREST_DEPTH: Final = 200
_EXACT: Final = Context(prec=1_000, Emin=MIN_EMIN, Emax=MAX_EMAX)


@dataclass(frozen=True, slots=True)
class Reading:
    """What some bytes say. `sure` is False where the contract leaves room: then only harm is looked for."""

    event: dict[str, Any] | None
    """None where the contract refuses it."""
    json_object: bool
    sure: bool = True


class _Pairs(list[tuple[str, Any]]):
    """An object's members, in order, repeated ones too."""


class _WithPoint(str):
    """A number that is written with a point or an exponent."""

    __slots__ = ()


class _Whole(str):
    """A number that is written with digits alone."""

    __slots__ = ()


class _RefusedError(Exception):
    """The contract refuses the event."""


class _UnsureError(Exception):
    """The contract doesn't say."""


def read(raw: bytes) -> Reading:
    """Read by the contract alone."""
    depth = raw.count(b"{") + raw.count(b"[")  # at most
    try:
        pairs = json.loads(
            raw.decode(),
            parse_constant=_no_constant,
            parse_int=_Whole,
            parse_float=_WithPoint,
            object_pairs_hook=_Pairs,
        )
    except (ValueError, RecursionError):
        return Reading(None, json_object=False, sure=depth <= SUREST_DEPTH)
    if not isinstance(pairs, _Pairs):
        return Reading(None, json_object=False, sure=depth <= SUREST_DEPTH)
    given = dict(pairs)
    plain = len(given) == len(pairs) and depth < MAX_DEPTH
    try:
        event = {name: _field(name, given.get(name)) for name in FIELDS}
    except _RefusedError:
        return Reading(None, json_object=True, sure=plain)
    except _UnsureError:
        return Reading(None, json_object=True, sure=False)
    event["duration_us"] = event.pop("duration_seconds")
    del event["metadata"]  # it is compared as JSON elsewhere
    return Reading(event, json_object=True, sure=plain)


def _no_constant(constant: str) -> None:
    raise ValueError(constant)


def _field(name: str, value: Any) -> Any:
    if value is None:
        if name in OPTIONAL:
            return None
        raise _RefusedError
    return _READERS[name](value)


def _integer(low: int, value: Any) -> int:
    if isinstance(value, _WithPoint):
        raise _UnsureError  # 1.0 and 1e0 are integers to some
    if not isinstance(value, _Whole) or len(value) > 30:
        raise _RefusedError
    if not low <= int(value) <= MAX_INT64:
        raise _RefusedError
    return int(value)


def _text(most: int, value: Any) -> str:
    if type(value) is not str or len(value) > most or not _fit(value):
        raise _RefusedError
    return value


def _direction(value: Any) -> str:
    if type(value) is str and value in {"inbound", "outbound"}:
        return value
    raise _RefusedError


def _duration_us(value: Any) -> int:
    if not isinstance(value, _Whole | _WithPoint) or len(value) > 100:
        raise _RefusedError
    if re.search("[eE][+-]?0*[1-9][0-9]{15}", value):
        raise _UnsureError  # an exponent of more digits than Python's decimals have room for
    seconds = _EXACT.create_decimal(value)
    if seconds == 0:
        return 0
    if not Decimal("0.000001") <= seconds <= 604_800:
        raise _RefusedError
    microseconds = _EXACT.multiply(seconds, Decimal(1_000_000))
    if _EXACT.remainder(microseconds, Decimal(1)) != 0:
        raise _RefusedError
    return int(microseconds)


def _ended_at(value: Any) -> datetime:
    if type(value) is not str:
        raise _RefusedError
    # The plain forms; any other may be an instant or not.
    if not re.fullmatch(
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?(Z|[+-]\d\d:\d\d)", value, re.ASCII
    ):
        raise _UnsureError
    try:
        at = datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _RefusedError from None
    if at.year < 2:
        raise _UnsureError  # its start may not exist
    if at - NOW > timedelta(minutes=5):
        raise _RefusedError
    return at


def _metadata(value: Any) -> _Pairs:
    if not isinstance(value, _Pairs) or not all(_fit(text) for text in _texts(value)):
        raise _RefusedError
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, _Pairs):
        return [text for key, item in value for text in (key, *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if type(value) is str else []


def _fit(text: str) -> bool:
    """Whether Postgres can hold it."""
    return not re.search("[\0\ud800-\udfff]", text)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "call_id": partial(_integer, 1),
    "org_id": partial(_integer, 1),
    "tier": partial(_text, 200),
    "direction": _direction,
    "duration_seconds": _duration_us,
    "ended_at": _ended_at,
    "phone_number_id": partial(_integer, -MAX_INT64 - 1),
    "phone_number_value": partial(_text, 64),
    "metadata": _metadata,
}
