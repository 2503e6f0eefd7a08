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

from db.ledger.post_calls import Posted, StalePriceBookError, post_calls
from db.ledger.prices import load_price_book
from db.postgres.blockers import end_blockers
from db.postgres.engine import driver_connection, transaction
from db.postgres.failures import Failure, diagnose, driver_error
from metering.rules.pricing import PriceBook
from metering.rules.rejections import Reason, Rejection
from metering.runtime.backoff import backoff_s
from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from metering.signals.gates import Gates
from workers.after_commit import AfterCommit, CommittedBatch
from workers.batch import ParsedEntry, PricedBatch, parse_entries, price_entries
from workers.failures import StoppedError, sentence
from workers.prefetch import Prefetch, ReadBatch, limit_after
from workers.reload_follower import ReloadFollower
from workers.stream import CallStream, Entry, Pending

BATCH_LIMIT: Final = 3_000
"""As many as are there are taken, so only a backlog makes batches that large (docs/explanation/performance.md)."""
BLOCK_MS: Final = 1_000
"""How long to wait for events where there are none; also the longest that a stop waits for an idle meter."""
ABANDONED_AFTER_MS: Final = 10_000
"""An entry that was delivered so long ago has lost its meter: batches take milliseconds."""
CLAIM_EVERY_S: Final = 5.0
PRICES_EVERY_S: Final = 10.0
"""A later price starts at least 60 s ahead and meters know it within 30 s (docs/reference/money-rules.md#which-price-counts)."""
FIRST_CLAIM: Final = 50
"""How many entries of others are claimed at first, while it isn't known how large they are."""
ISOLATE_AFTER_DELIVERIES: Final = 3
GIVE_UP_AFTER_DELIVERIES: Final = 10
"""By then the entry has been alone with a meter seven times, and no meter has lived to finish it."""
LOCK_TIMEOUT_MS: Final = 2_000
"""To be set on the engine that a meter is given."""
POOL_SIZE: Final = 3
"""The same: for batches, for ending who blocks them, and for what follows the commit."""
END_BLOCKERS_AFTER_S: Final = 1.0
LOCK_RETRIES: Final = 6
"""How often a batch waits for locks before it goes on without the orgs that somebody holds; ours are ended long before that."""
LOCK_RETRIES_RECOVERED: Final = 2
"""The same for entries that come again: what was left for later must not hold up what is new each time."""
RETRY_ALONE_AFTER_S: Final = 0.5
CONSUMER_FORGOTTEN_AFTER_MS: Final = 3_600_000

log: structlog.stdlib.BoundLogger = structlog.get_logger()


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
        reloads: ReloadFollower,
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
        self._clock = clock
        self._stop = stop
        self._batch_limit = batch_limit
        self._block_ms = block_ms
        self._abandoned_after_ms = abandoned_after_ms
        self._monotonic = monotonic
        self._book = PriceBook(0, [])
        self._prices_due = 0.0
        self._claim_due = 0.0
        self._log = log.bind(meter=stream.consumer)
        self._gates = gates
        self._reloads = reloads

    def run(self) -> None:
        """Bill what comes until told to stop; outlive outages of Postgres and Redis."""
        self._after_commit = AfterCommit(
            self._stream,
            self._gates,
            self._reloads,
            clock=self._clock,
            stop=self._stop,
            monotonic=self._monotonic,
        )
        self._prefetch = Prefetch(
            self._stream,
            book=lambda: self._book,
            clock=self._clock,
            batch_limit=self._batch_limit,
            block_ms=self._block_ms,
            monotonic=self._monotonic,
        )
        try:
            self._run()
            self._bill_last()
            self._after_commit.flush()
        except StoppedError:
            pass
        except BaseException:
            self._stop.set()  # or AfterCommit would wait for a Redis that is away, and nobody hear of this error
            raise
        finally:
            self._prefetch.close()
            self._after_commit.close()
        self._leave()

    def _run(self) -> None:
        waits = backoff_s()
        while not self._stop.is_set():
            try:
                # Postgres first: what is read while it is away would only count as one more delivery.
                self._load_prices()
                self._stream.join()
                # What was read ahead comes first, or it would be found again as pending.
                self._bill_read(self._prefetch.drain())
                self._after_commit.flush()  # what is on its way out isn't left behind
                self._recover(consumer=self._stream.consumer, min_idle_ms=0)
                self._log.info("meter is ready", price_book_version=self._book.version)
                waits = backoff_s()
                while not self._stop.is_set():
                    self._bill_next()
            except StoppedError:
                raise
            except Exception as error:
                if isinstance(error, redis.ResponseError) and str(error).startswith("NOGROUP"):
                    self._log.warning("the consumer group is gone; making it again")
                    continue
                if not isinstance(error, redis.RedisError) and diagnose(error) is not Failure.OUTAGE:
                    raise
                self._wait_out(error, next(waits))

    def _bill_next(self) -> None:
        """Take what is there and bill it; now and then look at the prices and at what others left."""
        self._after_commit.check()
        now_s = self._monotonic()
        if now_s >= self._prices_due:
            self._load_prices()
        if now_s < self._claim_due:
            self._bill_read(self._prefetch.take())
            return
        # Nothing is read ahead meanwhile: if batches take long, what waits for its turn would look abandoned.
        self._bill_read(self._prefetch.drain())
        self._recover(consumer=None, min_idle_ms=self._abandoned_after_ms)
        self._stream.delete_idle_consumers(idle_ms=CONSUMER_FORGOTTEN_AFTER_MS)
        self._claim_due = now_s + CLAIM_EVERY_S

    def _bill_read(self, batch: ReadBatch) -> None:
        if batch.parsed:
            self._bill_parsed(batch.parsed, batch.read_s, recovered=False, priced=batch.priced)

    def _bill_last(self) -> None:
        """Bill what was read ahead when the meter was told to stop; what Redis still may have said before it went away waits."""
        try:
            batch = self._prefetch.drain()
        except redis.RedisError as error:
            self._log.warning("could not read the last batch", error=sentence(error))
            return
        self._bill_read(batch)

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
            self._bill_in_parts(calm, min_idle_ms)
            for entry in page:
                if entry.deliveries >= ISOLATE_AFTER_DELIVERIES:
                    self._bill_alone(entry, min_idle_ms)

    def _bill_in_parts(self, stream_ids: Sequence[str], min_idle_ms: int) -> None:
        """Claim and bill entries, a few first: what comes again may be what a meter had no memory for."""
        limit, rest = FIRST_CLAIM, stream_ids
        while rest:
            entries = self._stream.claim(rest[:limit], min_idle_ms=min_idle_ms)
            self._bill_claimed(entries)
            rest = rest[limit:]
            if entries:
                limit = limit_after(entries, self._batch_limit)

    def _bill_alone(self, pending: Pending, min_idle_ms: int) -> None:
        entries = self._stream.claim([pending.stream_id], min_idle_ms=min_idle_ms)
        if entries and pending.deliveries >= GIVE_UP_AFTER_DELIVERIES:
            why = f"delivered {pending.deliveries} times, and no meter finished it"
            given_up = [
                ParsedEntry(e.stream_id, e.raw, Rejection(Reason.UNPROCESSABLE, why)) for e in entries
            ]
            self._bill_parsed(given_up, self._monotonic(), recovered=True)
        else:
            self._bill_claimed(entries)
        self._after_commit.flush()  # alone to the end

    def _bill_claimed(self, entries: Sequence[Entry]) -> None:
        """Bill entries that were delivered before, to whomever."""
        if not entries:
            return
        started_s = self._monotonic()
        reach(CrashPoint.METER_AFTER_READ)
        parsed = parse_entries(entries, self._clock())
        reach(CrashPoint.METER_AFTER_PARSE)
        self._bill_parsed(parsed, started_s, recovered=True)

    def _bill_parsed(
        self,
        parsed: Sequence[ParsedEntry],
        started_s: float,
        *,
        recovered: bool,
        priced: PricedBatch | None = None,
    ) -> None:
        """Post a batch, priced before if it is `priced`, and after the commit have it finished."""
        lock_retries = LOCK_RETRIES_RECOVERED if recovered else LOCK_RETRIES
        posted = self._post(parsed, lock_retries=lock_retries, priced=priced)
        if posted.deferred:
            self._log.warning(
                "orgs' accounts are locked by another session; their calls are deferred",
                calls=len(posted.deferred),
            )
            self._reset_deliveries([call.stream_id for call in posted.deferred])
        self._after_commit.submit(CommittedBatch(parsed, posted, started_s, self._monotonic(), recovered))

    def _post(
        self,
        parsed: Sequence[ParsedEntry],
        *,
        lock_retries: int,
        priced: PricedBatch | None = None,
        last_try: bool = False,
    ) -> Posted:
        """Post a batch, whatever it takes: wait out outages, end who blocks it, and part it around an event that can't be posted.

        After `lock_retries` tries that met a lock, calls of orgs that somebody else holds are deferred. Raises StoppedError if
        told to stop before the batch is posted.
        """
        waits = backoff_s()
        lock_failures = 0
        stale = reset = False
        while True:
            try:
                if stale:
                    self._load_prices()
                if priced is None or priced.book_version != self._book.version:
                    priced = price_entries(parsed, self._book)
                return self._transact(
                    priced, locked=lock_failures > 0, skip_locked=lock_failures >= lock_retries
                )
            except StalePriceBookError:
                stale = True
                continue  # even if told to stop: nothing keeps this batch from being finished
            except Exception as error:  # noqa: BLE001 - diagnose tells what it means; nothing is passed over
                failure = diagnose(error)
                if failure is Failure.POISON:
                    return self._bisect(parsed, error, lock_retries=lock_retries, last_try=last_try)
                if not reset:
                    reset = self._reset_deliveries([entry.stream_id for entry in parsed])
                if failure is Failure.LOCKED:
                    lock_failures += 1
                    self._log.warning(
                        "another transaction holds what this batch needs", error=sentence(error)
                    )
                else:
                    self._wait_out(error, next(waits))
            if self._stop.is_set():
                raise StoppedError

    def _reset_deliveries(self, stream_ids: Sequence[str]) -> bool:
        """Don't hold it against a batch that it isn't finished: the database is to blame, however many meters it goes through."""
        try:
            self._stream.reset_deliveries(stream_ids)
        except redis.RedisError as error:
            self._log.warning("could not reset a batch's count of deliveries", error=sentence(error))
            return False
        return True

    def _transact(self, priced: PricedBatch, *, locked: bool, skip_locked: bool) -> Posted:
        """Post the batch in one transaction; `locked` if somebody was in its way before."""
        with (
            transaction(self._engine) as connection,
            self._ending_blockers(driver_connection(connection)) if locked else nullcontext(),
        ):
            posted = post_calls(
                connection,
                priced.calls,
                priced.rejected,
                price_book_version=priced.book_version,
                clock=self._clock,
                skip_locked=skip_locked,
            )
        reach(CrashPoint.METER_AFTER_COMMIT)
        return posted

    def _bisect(
        self, parsed: Sequence[ParsedEntry], error: Exception, *, lock_retries: int, last_try: bool
    ) -> Posted:
        """Post a batch that failed for what is in it in halves, until the guilty event is alone: that one is kept, not billed."""
        if len(parsed) > 1:
            middle = len(parsed) // 2
            posted = self._post(parsed[:middle], lock_retries=lock_retries)
            posted.add(self._post(parsed[middle:], lock_retries=lock_retries))
            return posted
        if isinstance(parsed[0].event, Rejection):
            raise error  # not even its rejection can be written: that is no event's fault
        if driver_error(error) is None and not last_try:
            # Not the database's verdict on the data, but some error of this process: it may have been the moment's.
            self._stop.wait(RETRY_ALONE_AFTER_S)
            return self._post(parsed, lock_retries=lock_retries, last_try=True)
        self._log.error(
            "poison message: this event makes its batch fail by itself",
            stream_id=parsed[0].stream_id,
            exc_info=error,
        )
        return self._post([parsed[0].unprocessable(sentence(error))], lock_retries=lock_retries)

    @contextmanager
    def _ending_blockers(self, waiting: psycopg.Connection) -> Iterator[None]:
        """While the block waits for locks, end sessions of ours that hold them and don't move."""

        def end() -> None:
            try:
                ended = end_blockers(self._engine, waiting)
            except Exception as error:  # noqa: BLE001 - a thread's end; the batch tries again, and so will this
                self._log.warning("could not look for blockers", error=sentence(error))
                return
            if ended:
                self._log.warning("ended sessions that held locks and did not move", pids=ended)

        timer = threading.Timer(END_BLOCKERS_AFTER_S, end)
        try:
            timer.start()
        except RuntimeError as error:  # no thread to be had: the batch has to do without
            self._log.warning("could not look for blockers", error=sentence(error))
            yield
            return
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _wait_out(self, error: Exception, wait_s: float) -> None:
        """Wait before trying again what an outage stopped; less, if told to stop."""
        self._log.warning(
            "outage: trying again after a back-off", error=sentence(error), wait_s=round(wait_s, 2)
        )
        if driver_error(error) is not None:
            self._engine.dispose()  # its other connections went the same way
        self._stop.wait(wait_s)

    def _leave(self) -> None:
        """Take this consumer out of the group, if nothing is pending to it."""
        try:
            self._stream.delete_idle_consumers(idle_ms=CONSUMER_FORGOTTEN_AFTER_MS, leave=True)
        except redis.RedisError as error:
            self._log.warning("could not leave the consumer group", error=sentence(error))
        self._log.info("meter has stopped")
