"""Looking up keys that nobody knows yet: all that wait, in one statement.

Most of them are none. So many wrong ones as there may be, from wherever they come, cost Postgres one statement at a time on one
connection, and a hundred a second at most; a good key among them waits for the statement that is under way and its own. So no key
has to be refused without having been looked up.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from db.accounts.api_keys import key_hash

EVERY_S: Final = 0.01
"""How soon after another one a statement follows."""

Find = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, int]]]
"""Gives the orgs of those keys that are good, by the keys' hashes. Raises what Postgres raises."""


class _Batch:
    """Those that are looked up together."""

    def __init__(self) -> None:
        self.hashes: set[bytes] = set()
        self.found: asyncio.Future[Mapping[bytes, int]] = asyncio.get_running_loop().create_future()


class KeyLookups:
    """Of one event loop."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._next: _Batch | None = None
        self._one_at_a_time = asyncio.Lock()
        self._began_s = float("-inf")
        self._running: set[asyncio.Task[None]] = set()

    async def org_of(self, api_key: str) -> int | None:
        """The org that an API key names; None for a key that isn't there or was revoked. Raises what Postgres raises."""
        if self._next is None:
            self._next = _Batch()
            running = asyncio.create_task(self._look_up(self._next))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        batch, key = self._next, key_hash(api_key)
        batch.hashes.add(key)
        # Whoever goes away takes nobody else's answer along.
        return (await asyncio.shield(batch.found)).get(key)

    async def _look_up(self, batch: _Batch) -> None:
        async with self._one_at_a_time:
            await asyncio.sleep(max(self._began_s + EVERY_S - time.monotonic(), 0.0))
            self._began_s = time.monotonic()
            self._next = None  # who comes from now on waits for the next one
            try:
                batch.found.set_result(await self._find(list(batch.hashes)))
            except Exception as error:  # noqa: BLE001 - each of those who wait is told
                batch.found.set_exception(error)
