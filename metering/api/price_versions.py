"""The price book's version, asked with each hold: a price that was set must count, wherever it was set.

All that ask at the same time share one statement; nobody gets the answer of one that began before he asked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

Ask = Callable[[], Awaitable[tuple[int, datetime]]]
"""Gives the version of the price book and the time, by Postgres's clock. Raises what Postgres raises."""


class PriceVersions:
    """Of one event loop."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._next: asyncio.Future[tuple[int, datetime]] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()

    async def newest(self) -> tuple[int, datetime]:
        """The version and the time, by Postgres's clock: none of before it was asked for. Raises what Postgres raises."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            running = asyncio.create_task(self._answer(self._next))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        # Whoever goes away takes nobody else's answer along.
        return await asyncio.shield(self._next)

    async def _answer(self, asked: "asyncio.Future[tuple[int, datetime]]") -> None:
        async with self._one_at_a_time:
            self._next = None  # who comes from now on waits for the next one
            try:
                asked.set_result(await self._ask())
            except Exception as error:  # noqa: BLE001 - each of those who wait is told
                asked.set_exception(error)
