"""The time, as a value that is passed in: nothing in this project asks for it in any other way."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the current time, aware and in UTC."""


def system_clock() -> datetime:
    """The machine's clock, in UTC."""
    return datetime.now(UTC)


def to_milliseconds(at: datetime) -> datetime:
    """Cut `at` to whole milliseconds, the precision in which times of posting are stored (CONTRACT.md section 2, rule 10)."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
