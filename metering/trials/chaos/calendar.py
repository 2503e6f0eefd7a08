"""The clocks of a run: all of them, Postgres's too, can be set forward, so that months turn; one process's alone can be wrong."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg

from metering.runtime.backoff import backoff_s
from metering.runtime.clock import Clock, shifted_clock

HALF_A_MONTH_DAY: Final = 15
BEFORE_THE_MONTH_ENDS: Final = timedelta(seconds=5)


DATABASE_LIMIT_S: Final = 120
"""How long Postgres may be away when its clock is to be set."""

# The owner's function in the place of the one by which all processes decide (db/migrations/versions/0011_clock.py).
_DATABASE_CLOCK: Final = """
    CREATE OR REPLACE FUNCTION metering_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
        SELECT pg_catalog.date_trunc('milliseconds', pg_catalog.clock_timestamp() + interval '{} seconds')
    $$
"""


class Calendar:
    """The offset in a file (metering/runtime/clock.py), which only ever grows: clocks that go back are another matter.

    With `owner_url`, as libpq takes it, the clock of that database goes along: it is the one that counts.
    """

    def __init__(self, path: Path, owner_url: str | None = None) -> None:
        self.path = path
        self._owner_url = owner_url
        self._offset = timedelta()
        self._astray: dict[str, timedelta] = {}
        self._lock = threading.Lock()
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

    def path_of(self, role: str) -> Path:
        """The file of a role's own clock, which goes along with all others unless it is `set_astray`."""
        self.set_astray(role, timedelta())
        return self._path_of(role)

    def set_astray(self, role: str, by: timedelta) -> None:
        """Let a role's clock be ahead of all others by so much, or behind; by nothing it is right again."""
        with self._lock:
            self._astray[role] = by
            _write_offset(self._path_of(role), self._offset + by)

    def set_right(self) -> None:
        """Let no role's clock be wrong any more."""
        for role in list(self._astray):
            self.set_astray(role, timedelta())

    def _path_of(self, role: str) -> Path:
        return self.path.with_name(f"{self.path.name}-{role}")

    def _set(self, to: datetime) -> datetime:
        self.jumps += 1
        self._write(max(to - datetime.now(UTC), self.clock() - datetime.now(UTC)))
        return self.clock()

    def _write(self, offset: timedelta) -> None:
        if self._owner_url is not None:
            _set_database_clock(self._owner_url, offset)
        with self._lock:
            self._offset = offset
            _write_offset(self.path, offset)
            for role, by in self._astray.items():
                _write_offset(self._path_of(role), offset + by)


def _write_offset(path: Path, offset: timedelta) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(str(offset.total_seconds()), encoding="ascii")
    new.replace(path)  # whoever reads it finds all of it


def _set_database_clock(owner_url: str, offset: timedelta) -> None:
    """Set it ahead; whoever does so may find that Postgres was killed just now. Raises psycopg.Error after DATABASE_LIMIT_S."""
    waits, deadline_s = backoff_s(), time.monotonic() + DATABASE_LIMIT_S
    while True:
        try:
            with psycopg.connect(owner_url, autocommit=True) as owner:
                owner.execute(_DATABASE_CLOCK.format(offset.total_seconds()).encode())
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(next(waits))
