"""The meter: takes completed calls from the stream and bills them, a batch at a time."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

import psycopg
import redis
import structlog
from sqlalchemy import Engine

from db.blockers import end_blockers
from db.engine import driver_connection, transaction
from db.failures import Failure, diagnose, driver_error
from db.ledger import Posted, StalePriceBookError, post_calls
from db.prices import load_price_book
from metering.rules.gates import Balance
from metering.rules.pricing import PriceBook
from metering.rules.rejections import Reason, Rejection
from metering.runtime.backoff import backoff_s
from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from metering.signals.gates import Gates, Signal
from workers.batch import ParsedEntry, parse_entries, price_entries
from workers.metrics import (
    BATCH_EVENTS,
    BATCH_SECONDS,
    COMMIT_TO_SIGNAL_SECONDS,
    EVENT_TO_COMMIT_SECONDS,
    age_s,
    count_posted,
)
from workers.stream import CallStream, Entry, Pending

BATCH_LIMIT: Final = 500
BLOCK_MS: Final = 1_000
"""How long to wait for events where there are none; also the longest that a stop waits for an idle meter."""
ABANDONED_AFTER_MS: Final = 10_000
"""An entry that was delivered so long ago has lost its meter: batches take milliseconds."""
CLAIM_EVERY_S: Final = 5.0
PRICES_EVERY_S: Final = 10.0
"""A later price starts at least 60 s ahead and meters know it within 30 s (CONTRACT.md section 2, rule 4)."""
ISOLATE_AFTER_DELIVERIES: Final = 3
GIVE_UP_AFTER_DELIVERIES: Final = 10
"""By then the entry has been alone with a meter seven times, and no meter has lived to finish it."""
LOCK_TIMEOUT_MS: Final = 2_000
"""To be set on the engine that a meter is given."""
END_BLOCKERS_AFTER_S: Final = 1.0
CONSUMER_FORGOTTEN_AFTER_MS: Final = 3_600_000

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class StoppedError(Exception):
    """The meter was told to stop while it waited for something. What it held stays pending."""


class Meter:
    """One consumer of the stream. `run` returns once `stop` is set, with the batch in hand finished.

    Its place is what is pending to it in Redis: it acks an entry only after its effect is committed, so that whatever ends it,
    it or another meter comes upon that entry again.
    """

    def __init__(
        self,
        engine: Engine,
        stream: CallStream,
        gates: Gates,
        *,
        clock: Clock,
        stop: threading.Event,
        batch_limit: int = BATCH_LIMIT,
        block_ms: int = BLOCK_MS,
        abandoned_after_ms: int = ABANDONED_AFTER_MS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._gates = gates
        self._clock = clock
        self._stop = stop
        self._batch_limit = batch_limit
        self._block_ms = block_ms
        self._abandoned_after_ms = abandoned_after_ms
        self._monotonic = monotonic
        self._book = PriceBook(0, [])
        self._prices_due = 0.0
        self._claim_due = 0.0
        self._owed: dict[int, Balance] = {}
        self._log = log.bind(meter=stream.consumer)

    def run(self) -> None:
        """Bill what comes until told to stop; outlive outages of Postgres and Redis."""
        waits = backoff_s()
        while not self._stop.is_set():
            try:
                # Postgres first: what is read while it is away would only count as one more delivery.
                self._load_prices()
                self._stream.join()
                self._recover(consumer=self._stream.consumer, min_idle_ms=0)
                self._log.info("meter is ready", price_book_version=self._book.version)
                waits = backoff_s()
                while not self._stop.is_set():
                    self._turn()
            except StoppedError:
                break
            except Exception as error:
                if isinstance(error, redis.ResponseError) and str(error).startswith("NOGROUP"):
                    self._log.warning("the consumer group is gone; making it again")
                    continue
                if not isinstance(error, redis.RedisError) and diagnose(error) is not Failure.OUTAGE:
                    raise
                self._wait_out(error, next(waits))
        self._leave()

    def _turn(self) -> None:
        """Take what is there and bill it; now and then look at the prices and at what others left."""
        now_s = self._monotonic()
        if now_s >= self._prices_due:
            self._load_prices()
        if now_s >= self._claim_due:
            self._recover(consumer=None, min_idle_ms=self._abandoned_after_ms)
            self._stream.delete_idle_consumers(idle_ms=CONSUMER_FORGOTTEN_AFTER_MS)
            self._claim_due = now_s + CLAIM_EVERY_S
        if self._owed:
            self._follow_gates()
        entries = self._stream.read_new(limit=self._batch_limit, block_ms=self._block_ms)
        if entries:
            self._bill(entries)

    def _load_prices(self) -> None:
        with transaction(self._engine) as connection:
            self._book = load_price_book(connection)
        self._prices_due = self._monotonic() + PRICES_EVERY_S

    def _recover(self, *, consumer: str | None, min_idle_ms: int) -> None:
        """Bill what was delivered, to this meter before it started or to one that is gone, and never acked.

        Entries that come again and again are taken one at a time, so that one which kills its meter can't take others along; and
        in the end such an entry is given up and kept. That is known by Redis's count of deliveries: a counter in this process
        would die with it.
        """
        for page in self._stream.pending(consumer=consumer, min_idle_ms=min_idle_ms):
            if self._stop.is_set():
                raise StoppedError
            calm = [entry.stream_id for entry in page if entry.deliveries < ISOLATE_AFTER_DELIVERIES]
            if calm:
                self._bill(self._stream.claim(calm, min_idle_ms=min_idle_ms), recovered=True)
            for entry in page:
                if entry.deliveries >= ISOLATE_AFTER_DELIVERIES:
                    self._bill_alone(entry, min_idle_ms)

    def _bill_alone(self, pending: Pending, min_idle_ms: int) -> None:
        entries = self._stream.claim([pending.stream_id], min_idle_ms=min_idle_ms)
        if entries and pending.deliveries >= GIVE_UP_AFTER_DELIVERIES:
            why = f"delivered {pending.deliveries} times, and no meter finished it"
            given_up = [
                ParsedEntry(e.stream_id, e.raw, Rejection(Reason.UNPROCESSABLE, why)) for e in entries
            ]
            self._finish(given_up, self._post(given_up), self._monotonic(), recovered=True)
        else:
            self._bill(entries, recovered=True)

    def _bill(self, entries: Sequence[Entry], *, recovered: bool = False) -> None:
        """Bill a batch: parse, price and post it, and after the commit take it out of the stream."""
        if not entries:
            return
        started_s = self._monotonic()
        reach(CrashPoint.METER_AFTER_READ)
        parsed = parse_entries(entries, self._clock())
        reach(CrashPoint.METER_AFTER_PARSE)
        self._finish(parsed, self._post(parsed), started_s, recovered=recovered)

    def _finish(
        self, parsed: Sequence[ParsedEntry], posted: Posted, started_s: float, *, recovered: bool
    ) -> None:
        """What follows the commit: the gates, then the stream, then the log and the metrics."""
        committed_s = self._monotonic()
        EVENT_TO_COMMIT_SECONDS.observe(age_s(parsed[0].stream_id, self._clock()))
        for change in posted.changes.values():
            self._owed[change.org_id] = Balance(change.org_id, change.balance_cents, change.version)
        signals = self._follow_gates()
        COMMIT_TO_SIGNAL_SECONDS.observe(self._monotonic() - committed_s)
        reach(CrashPoint.METER_BEFORE_ACK)
        self._ack([entry.stream_id for entry in parsed])
        reach(CrashPoint.METER_AFTER_ACK)
        took_s = self._monotonic() - started_s
        BATCH_SECONDS.observe(took_s)
        BATCH_EVENTS.observe(len(parsed))
        count_posted(posted)
        for call in posted.debits:
            self._log.debug(
                "call billed", org_id=call.event.org_id, call_id=call.event.call_id, stream_id=call.stream_id
            )
        for rejected in posted.rejected:
            self._log.warning(
                "event rejected",
                stream_id=rejected.stream_id,
                reason=rejected.rejection.reason.value,
                detail=rejected.rejection.detail,
            )
        self._log.info(
            "batch",
            first_stream_id=parsed[0].stream_id,
            last_stream_id=parsed[-1].stream_id,
            events=len(parsed),
            debited=len(posted.debits),
            unbilled=posted.unbilled,
            duplicates=posted.duplicates,
            rejected=posted.rejections_by_reason(),
            orgs=len(posted.changes),
            signals=len(signals),
            recovered=recovered,
            took_ms=round(took_s * 1_000, 1),
        )

    def _follow_gates(self) -> list[Signal]:
        """Bring the gates to the balances that were committed.

        Never holds up the ack: a Redis that has no memory left refuses gates, but entries must leave it. What is still owed is
        told with the next batch; if this process dies before, the sweep finds it.
        """
        try:
            signals = self._gates.follow(self._owed.values(), self._clock())
        except redis.RedisError as error:
            self._log.warning("gates can't follow for now", owed=len(self._owed), error=_sentence(error))
            return []
        self._owed.clear()
        return signals

    def _post(self, parsed: Sequence[ParsedEntry]) -> Posted:
        """Post a batch, whatever it takes: wait out outages, end who blocks it, and part it around an event that can't be posted.

        Raises StoppedError if told to stop before it is posted.
        """
        waits = backoff_s()
        locked = stale = False
        while True:
            try:
                if stale:
                    self._load_prices()
                return self._transact(parsed, locked=locked)
            except StalePriceBookError:
                stale = True
            except Exception as error:  # noqa: BLE001 - diagnose tells what it means; nothing is passed over
                match diagnose(error):
                    case Failure.LOCKED:
                        locked = True
                        self._log.warning(
                            "another transaction holds what this batch needs", error=_sentence(error)
                        )
                    case Failure.OUTAGE:
                        self._wait_out(error, next(waits))
                    case Failure.POISON:
                        return self._part(parsed, error)
            if self._stop.is_set():
                raise StoppedError

    def _transact(self, parsed: Sequence[ParsedEntry], *, locked: bool) -> Posted:
        """Price the batch and post it in one transaction; `locked` if somebody was in its way before."""
        calls, rejected = price_entries(parsed, self._book)
        with (
            transaction(self._engine) as connection,
            self._ending_blockers(driver_connection(connection)) if locked else nullcontext(),
        ):
            posted = post_calls(
                connection, calls, rejected, price_book_version=self._book.version, clock=self._clock
            )
        reach(CrashPoint.METER_AFTER_COMMIT)
        return posted

    def _part(self, parsed: Sequence[ParsedEntry], error: Exception) -> Posted:
        """Post a batch that failed for what is in it in halves, until the guilty event is alone: that one is kept, not billed."""
        if len(parsed) > 1:
            middle = len(parsed) // 2
            posted = self._post(parsed[:middle])
            posted.add(self._post(parsed[middle:]))
            return posted
        if isinstance(parsed[0].event, Rejection):
            raise error  # not even its rejection can be written: that is no event's fault
        self._log.error("event alone makes its batch fail", stream_id=parsed[0].stream_id, exc_info=error)
        return self._post([parsed[0].unprocessable(_sentence(error))])

    @contextmanager
    def _ending_blockers(self, waiting: psycopg.Connection) -> Iterator[None]:
        """While the block waits for locks, end sessions of ours that hold them and don't move."""

        def strike() -> None:
            try:
                ended = end_blockers(self._engine, waiting)
            except Exception as error:  # noqa: BLE001 - a thread's end; the batch tries again, and so will this
                self._log.warning("could not look for blockers", error=_sentence(error))
                return
            if ended:
                self._log.warning("ended sessions that held locks and did not move", pids=ended)

        timer = threading.Timer(END_BLOCKERS_AFTER_S, strike)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _ack(self, stream_ids: Sequence[str]) -> None:
        """Take what is committed out of the stream; through outages, because acking twice does no harm."""
        waits = backoff_s()
        while True:
            try:
                return self._stream.ack(stream_ids)
            except redis.RedisError as error:
                self._wait_out(error, next(waits))
            if self._stop.is_set():
                raise StoppedError

    def _wait_out(self, error: Exception, wait_s: float) -> None:
        """Wait before trying again what an outage stopped; less, if told to stop."""
        self._log.warning("waiting out an outage", error=_sentence(error), wait_s=round(wait_s, 2))
        if driver_error(error) is not None:
            self._engine.dispose()  # its other connections went the same way
        self._stop.wait(wait_s)

    def _leave(self) -> None:
        """Take this consumer out of the group, if nothing is pending to it."""
        try:
            self._stream.delete_idle_consumers(idle_ms=CONSUMER_FORGOTTEN_AFTER_MS, leave=True)
        except redis.RedisError as error:
            self._log.warning("could not leave the group", error=_sentence(error))
        self._log.info("meter has stopped")


def _sentence(error: Exception) -> str:
    """An error in a line fit for a log and for a column of text."""
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}".replace("\0", " ")[:500]
