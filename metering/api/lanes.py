"""Threads for what blocks, in lanes of their own: whoever waits for Stripe keeps nobody waiting who asks for something quick.

| lane | threads | who |
| --- | --- | --- |
| gate | 4 | whose key it is; the gate's prices and balances |
| account | 8 | billing accounts, settings, transactions; noting that a client was told |
| provider | 48, at most 8 for one org | top-ups and cards: as long as Stripe takes |
| webhook | 8 | Stripe's webhooks, which may ask Stripe |
| health | 2 | whether Postgres answers |

Gate, account and health never wait for Stripe, and have connections to Postgres of their own, one for each thread
(`QUICK_CONNECTIONS`). The others share theirs with changes of settings (`PAYMENTS_CONNECTIONS`): fewer than there are threads,
because none is held while Stripe is asked.

What is asked for all the time needs no thread (metering/api/quick_answers.py), unless something is out of the ordinary.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

T = TypeVar("T")

GATE_THREADS: Final = 4
ACCOUNT_THREADS: Final = 8
PROVIDER_THREADS: Final = 48
PROVIDER_THREADS_PER_ORG: Final = 8
WEBHOOK_THREADS: Final = 8
HEALTH_THREADS: Final = 2
QUICK_CONNECTIONS: Final = GATE_THREADS + ACCOUNT_THREADS + HEALTH_THREADS
PAYMENTS_CONNECTIONS: Final = 16
MAX_WAITING: Final = 1_000
"""How many may wait for a lane; whoever comes then is told to come again."""
MAX_WAITING_PER_ORG: Final = 200
"""How many of one org's may wait for its turn with Stripe."""


class OverloadedError(Exception):
    """More is asked than can be done: come again in a moment. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("too many requests wait already: try again in a moment")


class Lane:
    """So many threads at most, and so many that wait for one."""

    def __init__(self, threads: int, *, max_waiting: int = MAX_WAITING) -> None:
        self._limiter = CapacityLimiter(threads)
        self._max_waiting = max_waiting

    async def run(self, do: Callable[[], T]) -> T:
        """Let a thread of this lane do it. Raises OverloadedError."""
        if self._limiter.statistics().tasks_waiting >= self._max_waiting:
            raise OverloadedError
        return await run_sync(do, limiter=self._limiter)


class ProviderLane(Lane):
    """The lane to Stripe, of which no org may take more than its part."""

    def __init__(self) -> None:
        super().__init__(PROVIDER_THREADS)
        self._turns: WeakValueDictionary[int, Turns] = WeakValueDictionary()

    async def run_for(self, org_id: int, do: Callable[[], T]) -> T:
        """Let a thread of this lane do it, when it is the org's turn. Raises OverloadedError."""
        turns = self.turns_of(org_id)
        if turns.waiting >= MAX_WAITING_PER_ORG:
            raise OverloadedError
        turns.waiting += 1
        try:
            await turns.free.acquire()
        finally:
            turns.waiting -= 1
        try:
            return await self.run(do)
        finally:
            turns.free.release()

    def turns_of(self, org_id: int) -> "Turns":
        """An org's turns, by those who hold them: they are gone with the last one."""
        turns = self._turns.get(org_id)
        if turns is None:
            turns = self._turns[org_id] = Turns()
        return turns


class Turns:
    """One org's part of the lane to Stripe."""

    def __init__(self) -> None:
        self.waiting = 0
        self.free = asyncio.Semaphore(PROVIDER_THREADS_PER_ORG)


class Lanes:
    """All lanes of one server."""

    def __init__(self) -> None:
        self.gate = Lane(GATE_THREADS)
        self.account = Lane(ACCOUNT_THREADS)
        self.provider = ProviderLane()
        self.webhook = Lane(WEBHOOK_THREADS)
        self.health = CapacityLimiter(HEALTH_THREADS)
