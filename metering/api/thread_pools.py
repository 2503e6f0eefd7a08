"""Bulkheads: a thread pool for each kind of blocking work, with a share for each org, so that nobody waits for another's.

| pool | threads | of one org at most | who |
| --- | --- | --- | --- |
| gate | 4 | 2 | whose key it is; the gate's prices and balances |
| key_lookup | 1 | | keys that were not good lately, all that wait in one statement (metering/api/key_lookups.py) |
| account | 8 | 2 | billing accounts, settings |
| list | 4 | 2 | transactions |
| delivery | 4 | 2 | noting that a top-up's client was told, that keys were used, that calls were refused |
| provider | 48 | 8 | top-ups and cards: as long as Stripe takes |
| webhook | 8 | | Stripe's webhooks, which may ask Stripe |
| calls | 2 | | completed calls that come over HTTP, into the stream |
| health | 2 | | whether Postgres answers |

Calls need no Postgres. Provider and webhook share connections (`PAYMENTS_CONNECTIONS`): fewer than there are threads, because
none is held while Stripe is asked. All others have a connection to Postgres for each thread (`QUICK_CONNECTIONS`): none waits
for one, nor for Stripe.

What is asked for all the time needs no thread (metering/api/quick_answers.py), unless something is out of the ordinary; of its
connections one org has half at most.

An org that asks for more than its share waits in its own line, first come, first served: its own requests are its only neighbours
there, a client that waits for its answers is slowed down by nothing else, and no limit has to be guessed for those who ask a lot
while nobody else does. While others do, each turn in the pools `account` and `list` rests after it (`REST`): all threads of the
process share one processor, and an org that kept two of them computing would slow everybody down. Only when `MAX_WAITING_PER_ORG`
wait already, which no client does that reads its answers, is it 429.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

T = TypeVar("T")

GATE_THREADS: Final = 4
KEY_LOOKUP_THREADS: Final = 1
ACCOUNT_THREADS: Final = 8
LIST_THREADS: Final = 4
DELIVERY_THREADS: Final = 4
THREADS_PER_ORG: Final = 2
PROVIDER_THREADS: Final = 48
PROVIDER_THREADS_PER_ORG: Final = 8
WEBHOOK_THREADS: Final = 8
CALLS_THREADS: Final = 2
"""More would only wait for one another: what they do is Python's work."""
HEALTH_THREADS: Final = 2
QUICK_CONNECTIONS: Final = (
    GATE_THREADS + KEY_LOOKUP_THREADS + ACCOUNT_THREADS + LIST_THREADS + DELIVERY_THREADS + HEALTH_THREADS
)
QUICK_ANSWERS_PER_ORG: Final = 4
PAYMENTS_CONNECTIONS: Final = 16
REST: Final = 10.0
"""How many times as long as it has computed a turn rests, while other orgs ask: an org's two take a fifth of a processor."""
MAX_REST_S: Final = 0.25
"""So long at most: a collection of garbage may have fallen into it."""
OTHERS_FOR_S: Final = 1.0
"""For how long an org counts as asking after its last request."""
CALLS_IN_HAND: Final = 64
"""How many requests with completed calls one server takes at once: so many MB may lie in its memory."""
HOLDS_IN_HAND: Final = 256
"""How many requests of telephony for holds one server takes at once: each is a turn or two of Redis."""
MAX_WAITING: Final = 1_000
"""How many may wait for a pool; whoever comes then is told to come again."""
MAX_WAITING_PER_ORG: Final = 200
"""How many of one org's may wait for its turn in a pool."""


class OverloadedError(Exception):
    """More is asked than can be done: come again in a moment. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("too many requests wait already: try again in a moment")


class OverShareError(Exception):
    """Somebody asks for more at once than his share. Nothing was done."""

    def __init__(self, limit: int, whose: str = "your organization") -> None:
        super().__init__(f"more than {limit} requests of {whose} wait already: send fewer at once")


class Askers:
    """Which orgs ask a server: as much of it as tells whether one is alone."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._newest: tuple[int | None, float] = (None, 0.0)
        self._before: tuple[int | None, float] = (None, 0.0)
        """The newest of another org than that."""

    def note(self, org_id: int) -> None:
        """An org asks now."""
        if self._newest[0] not in {None, org_id}:
            self._before = self._newest
        self._newest = (org_id, self._monotonic())

    def others_than(self, org_id: int) -> bool:
        """Whether another one has asked lately."""
        other, at_s = self._before if self._newest[0] == org_id else self._newest
        return other is not None and self._monotonic() - at_s < OTHERS_FOR_S


class Turn:
    """What an org has while it is its turn. It lasts for `rest_s` longer than it is used."""

    def __init__(self) -> None:
        self.rest_s = 0.0


class Shares:
    """So many of each org at once; its others wait for their turn. In one event loop."""

    def __init__(self, per_org: int, *, refuses: bool = True, askers: Askers | None = None) -> None:
        self._per_org = per_org
        self._refuses = refuses
        self.askers: Final = askers or Askers()
        self._slots: WeakValueDictionary[int, OrgSlots] = WeakValueDictionary()

    @asynccontextmanager
    async def slot(self, org_id: int) -> AsyncIterator[Turn]:
        """One of the org's slots, when there is one. Raises OverShareError."""
        self.askers.note(org_id)
        slots = self.slots_of(org_id)
        if self._refuses and slots.waiting >= MAX_WAITING_PER_ORG:
            raise OverShareError(MAX_WAITING_PER_ORG)
        slots.waiting += 1
        try:
            await slots.free.acquire()
        finally:
            slots.waiting -= 1
        turn = Turn()
        try:
            yield turn
        finally:
            if turn.rest_s:
                asyncio.get_running_loop().call_later(turn.rest_s, slots.release)
            else:
                slots.release()

    def slots_of(self, org_id: int) -> "OrgSlots":
        """An org's slots, by those who hold them: they are gone with the last one."""
        slots = self._slots.get(org_id)
        if slots is None:
            slots = self._slots[org_id] = OrgSlots(self._per_org)
        return slots


class OrgSlots:
    """One org's share."""

    def __init__(self, at_once: int) -> None:
        self.waiting = 0
        self.free = asyncio.Semaphore(at_once)

    def release(self) -> None:
        """Give a slot back. Of the slots, so that they stay while one of them rests."""
        self.free.release()


class InHand:
    """How many requests of one kind may be in hand at once, their bodies in memory. In one event loop."""

    def __init__(self, limit: int, whose: str) -> None:
        self._limit = limit
        self._whose = whose
        self.count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Have one more in hand. Raises OverShareError."""
        if self.count >= self._limit:
            raise OverShareError(self._limit, self._whose)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class ThreadPool:
    """So many threads at most, so many of them for one org; unless it `refuses` nobody, only so many may wait for one.

    `rest`: how many times as long as it has computed an org's turn rests, while other `askers` are there.
    """

    def __init__(
        self,
        threads: int,
        *,
        per_org: int = THREADS_PER_ORG,
        refuses: bool = True,
        rest: float = 0.0,
        askers: Askers | None = None,
    ) -> None:
        self._limiter = CapacityLimiter(threads)
        self._refuses = refuses
        self._rest = rest
        self.shares: Final = Shares(per_org, refuses=refuses, askers=askers)

    async def run(self, do: Callable[[], T]) -> T:
        """Let a thread of this pool do what is asked for by no org. Raises OverloadedError."""
        if self._refuses and self._limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise OverloadedError
        return await run_sync(do, limiter=self._limiter)

    async def run_for(self, org_id: int, do: Callable[[], T]) -> T:
        """Let a thread of this pool do it, when it is the org's turn. Raises OverShareError, OverloadedError."""
        async with self.shares.slot(org_id) as turn:
            timed = _Timed(do)
            try:
                return await self.run(timed)
            finally:
                if self.shares.askers.others_than(org_id):
                    turn.rest_s = min(timed.computed_s * self._rest, MAX_REST_S)


class _Timed(Generic[T]):
    """Something to do, and for how long it has computed: not how long it has waited for Postgres."""

    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self.computed_s = 0.0

    def __call__(self) -> T:
        began_s = time.thread_time()
        try:
            return self._do()
        finally:
            self.computed_s = time.thread_time() - began_s


class ThreadPools:
    """All thread pools of one server."""

    def __init__(self) -> None:
        askers = Askers()
        self.gate = ThreadPool(GATE_THREADS, askers=askers)
        self.key_lookup = ThreadPool(KEY_LOOKUP_THREADS)
        self.account = ThreadPool(ACCOUNT_THREADS, rest=REST, askers=askers)
        self.list = ThreadPool(LIST_THREADS, rest=REST, askers=askers)
        self.delivery = ThreadPool(DELIVERY_THREADS, refuses=False)
        self.provider = ThreadPool(PROVIDER_THREADS, per_org=PROVIDER_THREADS_PER_ORG, askers=askers)
        self.webhook = ThreadPool(WEBHOOK_THREADS)
        self.calls = ThreadPool(CALLS_THREADS)
        self.calls_in_hand = InHand(CALLS_IN_HAND, "telephony")
        self.holds_in_hand = InHand(HOLDS_IN_HAND, "telephony")
        self.health = CapacityLimiter(HEALTH_THREADS)
        self.quick = Shares(QUICK_ANSWERS_PER_ORG, askers=askers)  # no threads: quick answers' connections
