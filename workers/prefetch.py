"""Prefetch: the next batch is read, parsed and priced while Postgres works on this one.

One batch and no more, which is the backpressure: what meters can't take in stays in the stream.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from metering.rules.pricing import PriceBook
from metering.runtime.crashpoints import CrashPoint, reach
from workers.batch import ParsedEntry, PricedBatch, parse_entries, price_entries
from workers.stream import MAX_BATCH_BYTES, CallStream, Entry

POLL_EVERY_S: Final = 0.005
"""How often to look for more while a batch waits: what came since is billed with it, and not only with the next."""
POLL_AT_LEAST_EVERY_S: Final = 0.1
"""The same where nothing comes: the batch may wait for as long as Postgres is away."""
BATCH_EVERY_S: Final = 0.01
"""How soon a batch may follow another one, unless it is full: each costs as much as a hundred events, so that at moderate load
half of the work is saved. What comes alone is billed at once."""


class ReadBatch(msgspec.Struct, frozen=True):
    """A batch as it was read; pending to this consumer, like every entry that was delivered and isn't acked."""

    parsed: list[ParsedEntry]
    read_s: float
    """When its first part came."""
    priced: PricedBatch | None
    """None where it couldn't be priced: whoever bills it finds out what is wrong."""
    size_bytes: int

    def followed_by(self, later: "ReadBatch") -> "ReadBatch":
        """Both as one. Takes in `later`: this one must not be used any more."""
        self.parsed.extend(later.parsed)
        priced = (
            None if self.priced is None or later.priced is None else self.priced.followed_by(later.priced)
        )
        return ReadBatch(self.parsed, self.read_s, priced, self.size_bytes + later.size_bytes)


class ReaderEndedError(Exception):
    """Nothing is read any more: the meter must be started anew."""


NOTHING: Final = ReadBatch([], 0.0, None, 0)


class Prefetch:
    """Reads new entries, parses and prices them, one batch ahead of the one that was taken, in a thread of its own.

    It prices with what `book` gives then. Whoever bills the batch must see whether that is still the newest.
    """

    def __init__(
        self,
        stream: CallStream,
        *,
        book: Callable[[], PriceBook],
        batch_limit: int,
        block_ms: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._book = book
        self._batch_limit = batch_limit
        self._block_ms = block_ms
        self._monotonic = monotonic
        self._changed = threading.Condition()
        # All that follows is changed under that condition's lock, and said by it.
        self._read = NOTHING
        self._error: BaseException | None = None
        self._ended: BaseException | None = None
        """What the thread has ended with."""
        self._wanted = False
        """Whether to read at all."""
        self._reading = False
        """Whether Redis has been asked, and what it said isn't in `_read` yet."""
        self._looks = 0
        """How often Redis has been asked."""
        self._looked = 0
        """How often it has answered."""
        self._empty_looks = 0
        """How often it had nothing, for a batch that was empty."""
        self._look_s = 0.0
        """How long to wait before Redis is asked again, for a batch that isn't empty."""
        self._unbroken = 0
        """How many have come since Redis last had fewer than it was asked for."""
        self._closed = False
        self._next_batch_s = 0.0
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def take(self) -> ReadBatch:
        """The next batch; an empty one if nothing came for a while. Raises what kept it from being read.

        It is what has been read, however little; in a backlog it is full. While the caller works on it, the batch after it is
        read. What was read before an error is given first; the next call raises it, and the one after that has reading go on.
        """
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            empty_looks = self._empty_looks
            self._changed.wait_for(lambda: self._is_ready() or self._empty_looks > empty_looks)
            gathers = bool(self._read.parsed) and not self._is_full()
        wait_s = self._next_batch_s - self._monotonic()
        if gathers and wait_s > 0:
            time.sleep(wait_s)
            self._look()
        with self._changed:
            self._next_batch_s = self._monotonic() + BATCH_EVERY_S
            return self._taken()

    def drain(self) -> ReadBatch:
        """Stop reading ahead; give what was read and not taken. From then on all that is pending to this consumer was taken.

        Raises what kept it from being read, unless something was read before; then the next call does.
        """
        with self._changed:
            self._wanted = False
            self._changed.wait_for(lambda: not self._reading)
            return self._taken()

    def close(self) -> None:
        """End the thread. What it still reads stays pending."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _taken(self) -> ReadBatch:
        if not self._read.parsed:
            if self._ended is not None:
                raise ReaderEndedError("the thread that reads has ended") from self._ended
            if self._error is not None:
                error, self._error, self._wanted = self._error, None, False
                raise error
        batch, self._read = self._read, NOTHING
        self._look_s = 0.0
        self._changed.notify_all()
        return batch

    def _look(self) -> None:
        """Have Redis asked once more, and wait for what it says; not if it is being asked, or can't be asked now."""
        with self._changed:
            if self._reading:
                return
            before = self._looks
            self._look_s = 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._looked > before or not self._may_read())

    def _is_ready(self) -> bool:
        if self._error is not None or self._ended is not None:
            return True
        return bool(self._read.parsed) and (not self._is_backlog() or self._is_full())

    def _is_backlog(self) -> bool:
        """Whether a whole batch has been read, and Redis had more all the time."""
        return self._unbroken >= self._batch_limit

    def _is_full(self) -> bool:
        return len(self._read.parsed) >= self._batch_limit or self._read.size_bytes >= MAX_BATCH_BYTES

    def _may_read(self) -> bool:
        return self._wanted and not self._is_full() and self._error is None and self._ended is None

    def _run(self) -> None:
        try:
            self._read_on()
        except BaseException as error:  # noqa: BLE001 - nobody must wait for a thread that has ended
            with self._changed:
                self._reading = False
                self._ended = error
                self._changed.notify_all()

    def _read_on(self) -> None:
        """What is there; and, while nobody takes the batch, what comes meanwhile."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._may_read())
                if self._read.parsed and self._look_s:
                    self._changed.wait_for(lambda: self._closed or not self._look_s, timeout=self._look_s)
                if self._closed:
                    return
                if not self._may_read():
                    continue
                limit = self._batch_limit - len(self._read.parsed)
                limit_bytes = MAX_BATCH_BYTES - self._read.size_bytes
                block_ms = None if self._read.parsed else self._block_ms
                self._reading = True
                self._looks += 1
            came, error = 0, None
            try:
                for entries in self._stream.parts(
                    limit=limit, block_ms=block_ms, limit_bytes=limit_bytes, goes_on=self._goes_on
                ):
                    came += len(entries)
                    self._hand_over(self._prepared(entries))
            except BaseException as raised:  # noqa: BLE001 - raised to whoever takes the next batch; this thread must not end
                error = raised
            self._end_reading(error, came=came > 0, more=came == limit)

    def _goes_on(self) -> bool:
        return self._wanted and not self._closed

    def _prepared(self, entries: Sequence[Entry]) -> ReadBatch:
        """Entries, parsed and priced."""
        read_s = self._monotonic()
        reach(CrashPoint.METER_AFTER_READ)
        parsed = parse_entries(entries)
        reach(CrashPoint.METER_AFTER_PARSE)
        size_bytes = sum(len(entry.raw) for entry in entries)
        return ReadBatch(parsed, read_s, _priced(parsed, self._book()), size_bytes)

    def _hand_over(self, part: ReadBatch) -> None:
        with self._changed:
            self._read = self._read.followed_by(part) if self._read.parsed else part
            self._unbroken += len(part.parsed)
            if self._is_ready():
                self._changed.notify_all()

    def _end_reading(self, error: BaseException | None, *, came: bool, more: bool) -> None:
        """Tell when to ask again, by whether something came, and whether it was as much as was asked for."""
        with self._changed:
            self._reading = False
            self._looked = self._looks
            self._error = error
            if not more:
                self._unbroken = 0
            if not came and not self._read.parsed:
                self._empty_looks += 1
            if more:
                self._look_s = 0.0
            elif came or not self._look_s:
                self._look_s = POLL_EVERY_S
            else:
                self._look_s = min(2 * self._look_s, POLL_AT_LEAST_EVERY_S)
            self._changed.notify_all()


def _priced(parsed: Sequence[ParsedEntry], book: PriceBook) -> PricedBatch | None:
    try:
        return price_entries(parsed, book)
    except Exception:  # noqa: BLE001 - the batch is priced again where it is billed, and there the guilty event is found
        return None


def limit_after(entries: Sequence[Entry], batch_limit: int) -> int:
    """How many to claim next, if they are as large as `entries` are on average."""
    size_bytes = max(sum(len(entry.raw) for entry in entries), 1)
    return max(min(batch_limit, MAX_BATCH_BYTES * len(entries) // size_bytes), 1)
