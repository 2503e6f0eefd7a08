"""The clock of every process of a run: it can be set forward, so that months turn."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from metering.runtime.clock import Clock, shifted_clock

HALF_A_MONTH_DAY: Final = 15
BEFORE_THE_MONTH_ENDS: Final = timedelta(seconds=5)


class Calendar:
    """The offset in a file (metering/runtime/clock.py), which only ever grows: clocks that go back are another matter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._write(timedelta())
        self.jumps = 0
        """How often it was set forward."""
        self.clock: Clock = shifted_clock(path)

    def jump(self) -> datetime:
        """Set the clock to shortly before the month's end, which it then goes over; if that is near, to the next half of a month.

        Gives the time that it is after that.
        """
        now = self.clock()
        turn = (now.replace(day=1) + timedelta(days=32)).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        if now.day >= HALF_A_MONTH_DAY:
            return self._set(turn - BEFORE_THE_MONTH_ENDS)
        return self._set(now.replace(day=HALF_A_MONTH_DAY))

    def advance(self, by: timedelta) -> datetime:
        """Set the clock forward."""
        return self._set(self.clock() + by)

    def _set(self, to: datetime) -> datetime:
        self.jumps += 1
        self._write(max(to - datetime.now(UTC), self.clock() - datetime.now(UTC)))
        return self.clock()

    def _write(self, offset: timedelta) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(str(offset.total_seconds()), encoding="ascii")
        new.replace(self.path)  # whoever reads it finds all of it
