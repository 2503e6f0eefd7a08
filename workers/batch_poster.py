"""Posting a batch, whatever it takes: retries with back-off, ending who blocks it, isolating a poison message."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

import psycopg
import redis
import structlog
from sqlalchemy import Engine

from db.ledger.post_calls import Posted, StalePriceBookError, post_calls
from db.postgres.blockers import end_blockers
from db.postgres.engine import driver_connection, transaction
from db.postgres.failures import Failure, diagnose, driver_error
from metering.rules.rejections import Rejection
from metering.runtime.backoff import backoff_s
from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from workers.batch import ParsedEntry, PricedBatch, price_entries
from workers.current_prices import CurrentPrices
from workers.failures import StoppedError, sentence
from workers.stream import CallStream

END_BLOCKERS_AFTER_S: Final = 1.0
RETRY_ALONE_AFTER_S: Final = 0.5

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class BatchPoster:
    """Brings parsed batches into the ledger, each with its effect committed when `post` returns."""

    def __init__(
        self,
        engine: Engine,
        stream: CallStream,
        prices: CurrentPrices,
        *,
        clock: Clock,
        stop: threading.Event,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._prices = prices
        self._clock = clock
        self._stop = stop
        self._log = log.bind(meter=stream.consumer)

    def post(
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
                    self._prices.load()
                if priced is None or priced.book_version != self._prices.book.version:
                    priced = price_entries(parsed, self._prices.book)
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
                    reset = self.reset_deliveries([entry.stream_id for entry in parsed])
                if failure is Failure.LOCKED:
                    lock_failures += 1
                    self._log.warning(
                        "another transaction holds what this batch needs", error=sentence(error)
                    )
                else:
                    self.wait_out(error, next(waits))
            if self._stop.is_set():
                raise StoppedError

    def reset_deliveries(self, stream_ids: Sequence[str]) -> bool:
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
            posted = self.post(parsed[:middle], lock_retries=lock_retries)
            posted.add(self.post(parsed[middle:], lock_retries=lock_retries))
            return posted
        if isinstance(parsed[0].event, Rejection):
            raise error  # not even its rejection can be written: that is no event's fault
        if driver_error(error) is None and not last_try:
            # Not the database's verdict on the data, but some error of this process: it may have been the moment's.
            self._stop.wait(RETRY_ALONE_AFTER_S)
            return self.post(parsed, lock_retries=lock_retries, last_try=True)
        self._log.error(
            "poison message: this event makes its batch fail by itself",
            stream_id=parsed[0].stream_id,
            exc_info=error,
        )
        return self.post([parsed[0].unprocessable(sentence(error))], lock_retries=lock_retries)

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

    def wait_out(self, error: Exception, wait_s: float) -> None:
        """Wait before trying again what an outage stopped; less, if told to stop."""
        self._log.warning(
            "outage: trying again after a back-off", error=sentence(error), wait_s=round(wait_s, 2)
        )
        if driver_error(error) is not None:
            self._engine.dispose()  # its other connections went the same way
        self._stop.wait(wait_s)
