"""The time, as a value that is passed in: nothing in this project asks for it in any other way.

`METERING_CLOCK_OFFSET_FILE` names a file with the seconds by which this process's clock is ahead of the machine's; it is read
each time, so that a test can let the months of running processes turn. Unset, as always outside tests, there is no file.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

ENVIRONMENT_VARIABLE = "METERING_CLOCK_OFFSET_FILE"

Clock = Callable[[], datetime]
"""Returns the current time, aware and in UTC."""


def _machine_clock() -> datetime:
    """The machine's clock, in UTC."""
    return datetime.now(UTC)


def shifted_clock(path: Path) -> Clock:
    """The machine's clock, ahead by as many seconds as the file says at the time. Asking raises where it can't be read."""
    return lambda: datetime.now(UTC) + timedelta(seconds=float(path.read_text(encoding="ascii")))


_setting = os.environ.get(ENVIRONMENT_VARIABLE)
system_clock: Clock = shifted_clock(Path(_setting)) if _setting else _machine_clock
"""The time of this process."""


def age_s(age: timedelta, asked_s: float) -> float:
    """An age that was read when `time.monotonic()` said `asked_s`, as it is now: it grows while nobody can read it anew."""
    return age.total_seconds() + time.monotonic() - asked_s


def to_milliseconds(at: datetime) -> datetime:
    """Cut `at` to whole milliseconds, the precision in which times of posting are stored.

    See docs/reference/money-rules.md#times-and-months.
    """
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
