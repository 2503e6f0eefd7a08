"""What a worker that died had in hand at the broker goes to another, and dead workers are forgotten.

dramatiq's own maintenance does the same, but finds out by KEYS what a dead worker has left. KEYS walks over all keys that there
are, every org's gate among them, and holds up everybody else meanwhile (with a million gates 0.1 s); and whoever may send it sees
all names of keys. So it is switched off (workers/broker.py), and this asks for the keys of the queues that there are. What those
mean is dramatiq's affair: its `redis/dispatch.lua` describes them.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import redis
import structlog
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis, xq_name

from metering.runtime.lua import lua_script
from metering.runtime.names import JOBS
from workers.broker import HEARTBEAT_TIMEOUT_MS
from workers.periodic import PeriodicTask

PERIOD_S: Final = 2.0
DEAD_LETTERS_KEPT_MS: Final = 7 * 86_400_000
"""How long a message that was given up is kept for somebody to look at."""
DEAD_LETTERS_AT_ONCE: Final = 1_000

_TAKE_OVER: Final = lua_script(__package__, "take_over.lua")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class DeadWorkers:
    """The workers of a broker's queues that were not heard of for HEARTBEAT_TIMEOUT_MS.

    Who only sends messages counts as a worker too, and is dead that long after the last one; it has nothing in hand. `now_ms` is
    the clock of the heartbeats, which dramatiq asks for by itself.
    """

    def __init__(self, broker: RedisBroker, now_ms: Callable[[], int] = current_millis) -> None:
        self._broker = broker
        self._client: redis.Redis = broker.client
        self._now_ms = now_ms
        self._take_over = self._client.register_script(_TAKE_OVER)

    def task(self) -> PeriodicTask:
        """What goes round in every jobs process."""
        return PeriodicTask("dead workers", lambda _: self.clear(), PERIOD_S)

    def clear(self) -> None:
        """Return what each dead worker had in hand to its queue, and forget the worker; drop dead letters that are too old."""
        dead_since_ms = self._now_ms() - HEARTBEAT_TIMEOUT_MS
        found: Any = self._client.zrangebyscore(JOBS.heartbeats, 0, dead_since_ms)
        for worker in found:
            name = worker.decode()
            keys = [JOBS.heartbeats, *self._keys(name)]
            returned: Any = self._take_over(keys=keys, args=[name, dead_since_ms])
            if returned:
                log.info(
                    "messages of a dead worker went back to their queues", worker=name, messages=returned
                )
        for queue in self._broker.get_declared_queues():
            self._drop_old_letters(xq_name(queue))

    def _keys(self, worker: str) -> Iterator[str]:
        for queue in sorted(self._broker.get_declared_queues() | self._broker.get_declared_delay_queues()):
            yield JOBS.in_hand(worker, queue)
            yield JOBS.queue(queue)
            yield JOBS.messages(queue)

    def _drop_old_letters(self, queue: str) -> None:
        old: Any = self._client.zrangebyscore(
            JOBS.queue(queue), 0, self._now_ms() - DEAD_LETTERS_KEPT_MS, start=0, num=DEAD_LETTERS_AT_ONCE
        )
        if old:
            # The messages first: what is left of a letter after a crash in between is still found by its time.
            self._client.hdel(JOBS.messages(queue), *old)
            self._client.zrem(JOBS.queue(queue), *old)
