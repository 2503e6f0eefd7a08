"""Reading the next batch while one is billed: so Redis and the parser work while Postgres does."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from workers.batch import ParsedEntry, parse_entries
from workers.stream import MAX_BATCH_BYTES, CallStream, Entry


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

    def take(self) -> ReadBatch:
        """The next batch; an empty one if nothing came for a while. Raises redis.RedisError where it couldn't be read.

        While the caller works on it, the batch after it is read; after an error only at the next call.
        """
        if self._reading is None:
            self._reading = self._threads.submit(self._read)
        batch = self.settle()
        self._reading = self._threads.submit(self._read)
        return batch

    def settle(self) -> ReadBatch:
        """Stop reading ahead; give what was read and not taken. From then on all that is pending to this consumer was taken."""
        reading, self._reading = self._reading, None
        return reading.result() if reading is not None else ReadBatch([], 0.0)

    def close(self) -> None:
        """End the thread. What it still reads stays pending."""
        self._threads.shutdown()

    def _read(self) -> ReadBatch:
        entries = self._stream.read_new(limit=self._batch_limit, block_ms=self._block_ms)
        read_s = self._monotonic()
        if not entries:
            return ReadBatch([], read_s)
        reach(CrashPoint.METER_AFTER_READ)
        parsed = parse_entries(entries, self._clock())
        reach(CrashPoint.METER_AFTER_PARSE)
        return ReadBatch(parsed, read_s)


def limit_after(entries: Sequence[Entry], batch_limit: int) -> int:
    """How many to claim next, if they are as large as `entries` are on average."""
    size_bytes = max(sum(len(entry.raw) for entry in entries), 1)
    return max(min(batch_limit, MAX_BATCH_BYTES * len(entries) // size_bytes), 1)
