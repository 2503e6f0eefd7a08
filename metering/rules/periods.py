"""The edges of a period as customers write them: a time, or a date that stands for its whole day.

See docs/reference/http-api.md#transactions.
"""

import re
from datetime import UTC, date, datetime, time, timedelta

RULE = "must be an ISO 8601 date or time, such as 2026-04-20 or 2026-04-20T18:25:06Z; a time without an offset is UTC"

_WRITTEN = re.compile(r"[0-9W-]+[T ][0-9:.,]+(Z|[ +-][0-9:.]+)?", re.ASCII | re.IGNORECASE)
# A plus that wasn't percent-encoded in a URL arrives as a space.
_LOST_PLUS = re.compile(r"(T[0-9:.,]+) ([0-9]{2}:?[0-9]{2})")


def since(text: str) -> datetime:
    """The first instant of a period that starts at `text`, in UTC. ValueError says the rule."""
    day = _day(text)
    return _time(text) if day is None else datetime.combine(day, time(), UTC)


def until(text: str) -> datetime | None:
    """The instant before which a period ends that goes up to `text`: up to a time without it, up to a date with its whole day.

    In UTC; None for the last day that there is, after which nothing comes. ValueError says the rule.
    """
    day = _day(text)
    if day is None:
        return _time(text)
    return None if day == date.max else datetime.combine(day + timedelta(days=1), time(), UTC)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _time(text: str) -> datetime:
    # Python itself takes any separator, and overlooks what follows a Z.
    written = text.upper() if _WRITTEN.fullmatch(text) else ""
    try:
        at = datetime.fromisoformat(_LOST_PLUS.sub(r"\1+\2", written))
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(RULE) from None
