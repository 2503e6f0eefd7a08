"""Noting that API keys are used: some time after the request, and once an hour for each at most."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from cachetools import TTLCache

from db.accounts.api_keys import key_hash

EVERY_S: Final = 60.0
"""How long uses are gathered before they are noted."""
AT_ONCE: Final = 1_000
"""How many keys a statement notes at most."""
NOTED_FOR_S: Final = 3_600.0
"""How long a key that was noted isn't noted again. Postgres sees to it over all servers (db/accounts/statements.py)."""
MAX_KEYS: Final = 100_000
"""How many keys are kept in mind. Of more, some are noted more often, at no harm."""

Note = Callable[[Sequence[bytes]], Awaitable[None]]
"""Notes that keys were used, by their hashes. Raises what Postgres raises."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class KeyUses:
    """Of one server; in its event loop only."""

    def __init__(self, note: Note, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._used: set[bytes] = set()
        self._noted: TTLCache[bytes, None] = TTLCache(MAX_KEYS, NOTED_FOR_S, timer=monotonic)

    def record(self, api_key: str) -> None:
        """Note in this process that a good key was used: nothing is asked or awaited."""
        key = key_hash(api_key)
        if key not in self._noted and len(self._used) < MAX_KEYS:
            self._used.add(key)

    async def write(self) -> None:
        """Write what was recorded. What can't be written is kept for the next time, and never troubles a request."""
        while self._used:
            keys = sorted(self._used)[:AT_ONCE]
            try:
                await self._note(keys)
            except Exception as error:  # noqa: BLE001 - whatever it is: the next minute is another try
                log.warning("the use of API keys can't be noted now", error=type(error).__name__)
                return
            self._used.difference_update(keys)
            self._noted.update(dict.fromkeys(keys))

    def clear(self) -> None:
        """Know of no uses, as at the start."""
        self._used.clear()
        self._noted.clear()

    async def keep_writing(self, stop: asyncio.Event) -> None:
        """Write once a minute until `stop` is set, and then once more."""
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EVERY_S)
            await self.write()
