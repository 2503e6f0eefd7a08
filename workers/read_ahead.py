"""Reading the next batch while one is billed: so Redis and the parser work while Postgres does."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec
import redis

from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from workers.batch import ParsedEntry, parse_entries
from workers.stream import MAX_BATCH_BYTES, CallStream, Entry

LOOK_EVERY_S: Final = 0.005
"""How often to look for more while a batch waits: what came since is billed with it, and not only with the next."""
LOOK_AT_LEAST_EVERY_S: Final = 0.1
"""The same where nothing comes: the batch may wait for as long as Postgres is away."""
BATCH_EVERY_S: Final = 0.01
"""How soon a batch may follow another one, unless it is full: each costs as much as a hundred events, so that at moderate load
half of the work is saved. What comes alone is billed at once."""


class ReadBatch(msgspec.Struct, frozen=True):
    """A batch as it was read; pending to this consumer, like every entry that was delivered and isn't acked."""

    parsed: Sequence[ParsedEntry]
    read_s: float


class ReadAhead:
    """Reads new entries and parses them, one batch ahead of the one that was taken, in a thread of its own."""

    def __init__(
        self,
        stream: CallStream,
        *,
        clock: Clock,
        batch_limit: int,
        block_ms: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._batch_limit = batch_limit
        self._block_ms = block_ms
        self._monotonic = monotonic
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._reading: Future[ReadBatch] | None = None
        self._wanted = threading.Event()
        self._next_batch_s = 0.0
        self._error: redis.RedisError | None = None

    def take(self) -> ReadBatch:
        """The next batch; an empty one if nothing came for a while. Raises redis.RedisError where it couldn't be read.

        While the caller works on it, the batch after it is read, up to the moment at which that is taken; after an error only at
        the next call.
        """
        if self._reading is None:
            self._reading = self._threads.submit(self._read)
        batch = self.settle()
        self._reading = self._threads.submit(self._read)
        return batch

    def settle(self) -> ReadBatch:
        """Stop reading ahead; give what was read and not taken. From then on all that is pending to this consumer was taken."""
        reading, self._reading = self._reading, None
        if reading is None:
            return ReadBatch([], 0.0)
        self._wanted.set()
        try:
            return reading.result()
        finally:
            self._wanted.clear()

    def close(self) -> None:
        """End the thread. What it still reads stays pending."""
        self._threads.shutdown()

    def _read(self) -> ReadBatch:
        """What is there; and, while nobody wants the batch, what comes meanwhile."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        parsed = self._read_part(self._batch_limit, self._block_ms)
        read_s = self._monotonic()
        size_bytes, wanted, look_s = _size_bytes(parsed), False, LOOK_EVERY_S
        while parsed and not wanted and len(parsed) < self._batch_limit and size_bytes < MAX_BATCH_BYTES:
            wanted = self._wanted.wait(look_s)
            if wanted:
                time.sleep(max(self._next_batch_s - self._monotonic(), 0.0))
            try:
                part = self._read_part(self._batch_limit - len(parsed), None)
            except redis.RedisError as error:
                self._error = error  # for the next call: what was read before is as good as ever
                break
            parsed += part
            size_bytes += _size_bytes(part)
            look_s = LOOK_EVERY_S if part else min(2 * look_s, LOOK_AT_LEAST_EVERY_S)
        self._next_batch_s = self._monotonic() + BATCH_EVERY_S
        return ReadBatch(parsed, read_s)

    def _read_part(self, limit: int, block_ms: int | None) -> list[ParsedEntry]:
        entries = self._stream.read_new(limit=limit, block_ms=block_ms)
        if not entries:
            return []
        reach(CrashPoint.METER_AFTER_READ)
        parsed = parse_entries(entries, self._clock())
        reach(CrashPoint.METER_AFTER_PARSE)
        return parsed


def _size_bytes(parsed: Sequence[ParsedEntry]) -> int:
    return sum(len(entry.raw) for entry in parsed)


def limit_after(entries: Sequence[Entry], batch_limit: int) -> int:
    """How many to claim next, if they are as large as `entries` are on average."""
    size_bytes = max(sum(len(entry.raw) for entry in entries), 1)
    return max(min(batch_limit, MAX_BATCH_BYTES * len(entries) // size_bytes), 1)
