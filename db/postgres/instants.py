"""Instants as Postgres keeps them: microseconds since the year 2000, in UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_DAY_US: Final = 86_400_000_000
_SECOND_US: Final = 1_000_000


def microseconds(at: datetime) -> int:
    """An aware time as Postgres keeps it."""
    since = at - _EPOCH
    return since.days * _DAY_US + since.seconds * _SECOND_US + since.microseconds


def instant(kept_us: int) -> datetime:
    """The time that Postgres keeps as `kept_us`; OverflowError for one that Python has no date for."""
    return _EPOCH + timedelta(microseconds=kept_us)
