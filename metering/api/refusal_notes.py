"""Noting that calls were refused for want of money: at once, beside the answer, and once a minute for an org at most."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from cachetools import TTLCache

NOTED_FOR_S: Final = 60.0
"""How long an org that was noted isn't noted again. Postgres sees to it over all servers (db/attempts/statements.py)."""
AGAIN_S: Final = 1.0
"""How long after it failed it is tried again."""
MAX_ORGS: Final = 10_000
"""How many orgs are kept in mind. Of more, some are noted by their next call."""

Note = Callable[[Mapping[int, int]], Awaitable[None]]
"""Notes orgs, each with what one first increment costs in cents. Raises what Postgres raises."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class RefusalNotes:
    """Of one server; in its event loop only."""

    def __init__(self, note: Note, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._refused: dict[int, int] = {}
        self._noted: TTLCache[int, None] = TTLCache(MAX_ORGS, NOTED_FOR_S, timer=monotonic)
        self._wanted = asyncio.Event()

    def record(self, org_id: int, first_increment_cents: int) -> None:
        """Note in this process that a call was refused: nothing is asked or awaited."""
        if org_id not in self._noted and len(self._refused) < MAX_ORGS:
            self._refused.setdefault(org_id, first_increment_cents)
            self._wanted.set()

    async def write(self) -> bool:
        """Write what was recorded; tell whether it is written. What isn't is kept, and never troubles a request."""
        refused = dict(self._refused)
        if not refused:
            return True
        try:
            await self._note(refused)
        except Exception as error:  # noqa: BLE001 - whatever it is: it is tried again
            log.warning("refused calls can't be noted now", orgs=len(refused), error=type(error).__name__)
            return False
        for org_id in refused:
            self._refused.pop(org_id, None)
        self._noted.update(dict.fromkeys(refused))
        return True

    def clear(self) -> None:
        """Know of no refusals, as at the start."""
        self._refused.clear()
        self._noted.clear()

    async def keep_writing(self, stop: asyncio.Event) -> None:
        """Write what is recorded, as it comes, until `stop` is set, and then once more."""
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            wanted = asyncio.create_task(self._wanted.wait())
            await asyncio.wait([stopping, wanted], return_when=asyncio.FIRST_COMPLETED)
            wanted.cancel()
            self._wanted.clear()
            if not await self.write() and not stop.is_set():
                self._wanted.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), AGAIN_S)
        await self.write()
        stopping.cancel()
