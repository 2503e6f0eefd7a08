"""The meter: takes completed calls from the stream and bills them, a batch at a time."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import redis
import structlog
from sqlalchemy import Engine

from db.postgres.failures import is_away
from metering.rules.rejections import Reason, Rejection
from metering.runtime.backoff import backoff_s
from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from metering.signals.gates import Gates
from workers.after_commit import AfterCommit, CommittedBatch
from workers.batch import ParsedEntry, PricedBatch, parse_entries
from workers.batch_poster import BatchPoster
from workers.current_prices import CurrentPrices
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
FIRST_CLAIM: Final = 50
"""How many entries of others are claimed at first, while it isn't known how large they are."""
ISOLATE_AFTER_DELIVERIES: Final = 3
GIVE_UP_AFTER_DELIVERIES: Final = 10
"""By then the entry has been alone with a meter seven times, and no meter has lived to finish it."""
LOCK_TIMEOUT_MS: Final = 2_000
"""To be set on the engine that a meter is given."""
POOL_SIZE: Final = 3
"""The same: for batches, for ending who blocks them, and for what follows the commit."""
LOCK_RETRIES: Final = 6
"""How often a batch waits for locks before it goes on without the orgs that somebody holds; ours are ended long before that."""
LOCK_RETRIES_RECOVERED: Final = 2
"""The same for entries that come again: what was left for later must not hold up what is new each time."""
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
        tell_calls: bool = False,
    ) -> None:
        """`tell_calls`: log a line for each call, where the level lets that through."""
        self._tell_calls = tell_calls
        self._engine = engine
        self._stream = stream
        self._clock = clock
        self._stop = stop
        self._batch_limit = batch_limit
        self._block_ms = block_ms
        self._abandoned_after_ms = abandoned_after_ms
        self._monotonic = monotonic
        self._prices = CurrentPrices(engine, monotonic=monotonic)
        self._poster = BatchPoster(engine, stream, self._prices, clock=clock, stop=stop)
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
            self._engine,
            clock=self._clock,
            stop=self._stop,
            monotonic=self._monotonic,
            tell_calls=self._tell_calls,
        )
        self._prefetch = Prefetch(
            self._stream,
            book=lambda: self._prices.book,
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
                self._prices.load()
                self._stream.join()
                # What was read ahead comes first, or it would be found again as pending.
                self._bill_read(self._prefetch.drain())
                self._after_commit.flush()  # what is on its way out isn't left behind
                self._recover(consumer=self._stream.consumer, min_idle_ms=0)
                self._log.info("meter is ready", price_book_version=self._prices.book.version)
                waits = backoff_s()
                while not self._stop.is_set():
                    self._bill_next()
            except StoppedError:
                raise
            except Exception as error:
                if isinstance(error, redis.ResponseError) and str(error).startswith("NOGROUP"):
                    self._log.warning("the consumer group is gone; making it again")
                    continue
                if not isinstance(error, redis.RedisError) and not is_away(error):
                    raise
                self._poster.wait_out(error, next(waits))

    def _bill_next(self) -> None:
        """Take what is there and bill it; now and then look at the prices and at what others left."""
        self._after_commit.check()
        now_s = self._monotonic()
        self._prices.load_if_due()
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
        parsed = parse_entries(entries)
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
        posted = self._poster.post(parsed, lock_retries=lock_retries, priced=priced)
        if posted.deferred:
            self._log.warning(
                "orgs' accounts are locked by another session; their calls are deferred",
                calls=len(posted.deferred),
            )
            self._poster.reset_deliveries([call.stream_id for call in posted.deferred])
        self._after_commit.submit(CommittedBatch(parsed, posted, started_s, self._monotonic(), recovered))

    def _leave(self) -> None:
        """Take this consumer out of the group, if nothing is pending to it."""
        try:
            self._stream.delete_idle_consumers(idle_ms=CONSUMER_FORGOTTEN_AFTER_MS, leave=True)
        except redis.RedisError as error:
            self._log.warning("could not leave the consumer group", error=sentence(error))
        self._log.info("meter has stopped")
