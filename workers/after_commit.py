"""What follows a batch's commit, while the next batch is on its way: gates, signals, the ack, the log, reloads."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
import redis
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db.ledger.owed_hold_ends import keep_owed_ends
from db.ledger.post_calls import Posted
from db.postgres.engine import transaction
from db.postgres.failures import Failure, diagnose
from metering.rules.gates import Balance
from metering.rules.rejections import Rejection
from metering.runtime.backoff import backoff_s
from metering.runtime.clock import Clock
from metering.runtime.crashpoints import CrashPoint, reach
from metering.runtime.redis_failures import refuses
from metering.signals.gates import Gates, Signal
from workers.batch import ParsedEntry
from workers.failures import StoppedError, sentence
from workers.metrics import (
    BATCH_EVENTS,
    BATCH_SECONDS,
    COMMIT_TO_SIGNAL_SECONDS,
    EVENT_TO_COMMIT_SECONDS,
    age_s,
    count_posted,
)
from workers.reload_follower import ReloadFollower
from workers.seen_calls import SeenCalls
from workers.stream import CallStream

OWED_EVERY_S: Final = 1.0
"""How often gates that couldn't follow are tried again where no batch comes."""


class CommittedBatch(msgspec.Struct, frozen=True):
    """A batch whose effect is in Postgres, and nowhere else yet."""

    parsed: Sequence[ParsedEntry]
    posted: Posted
    started_s: float
    committed_s: float
    recovered: bool


class AfterCommit:
    """Finishes committed batches in their order, one at a time, in a thread of its own: so Redis works while Postgres does.

    At most one batch waits for the one in hand. What it hasn't finished when the process dies is still pending in Redis, and the
    gate reconciler finds gates that didn't follow.
    """

    def __init__(
        self,
        stream: CallStream,
        gates: Gates,
        reloads: ReloadFollower,
        engine: Engine,
        *,
        clock: Clock,
        stop: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
        tell_calls: bool = False,
    ) -> None:
        self._tell_calls = tell_calls
        self._stream = stream
        self._gates = gates
        self._reloads = reloads
        self._engine = engine
        self._clock = clock
        self._stop = stop
        self._monotonic = monotonic
        self._owed: dict[int, Balance] = {}
        self._seen = SeenCalls()
        self._holds_refused = ""
        self._batches: queue.Queue[CommittedBatch | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(meter=stream.consumer)
        self._thread = threading.Thread(target=self._run, name="after commit", daemon=True)
        self._thread.start()

    def submit(self, batch: CommittedBatch) -> None:
        """Have a batch finished, after those before it. Raises what an earlier one failed with."""
        self.check()
        self._batches.put(batch)

    def flush(self) -> None:
        """Wait until every batch is finished. Raises what one of them failed with."""
        self._batches.join()
        self.check()

    def close(self) -> None:
        """Finish what there is, and end."""
        self._batches.put(None)
        self._thread.join()

    def check(self) -> None:
        """Raise what a batch failed with, if one has."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            try:
                batch = self._batches.get(timeout=OWED_EVERY_S)
            except queue.Empty:
                if self._owed:
                    self._attempt(self._follow_gates)
                continue
            try:
                if batch is None:
                    return
                self._attempt(partial(self._finish, batch))
            finally:
                self._batches.task_done()

    def _attempt(self, work: Callable[[], object]) -> None:
        """Do it, unless something failed before: then the meter is about to end, and what is left stays pending."""
        if self._failure is not None:
            return
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised to the meter at its next call; this thread must go on to take batches
            self._failure = error

    def _finish(self, batch: CommittedBatch) -> None:
        parsed, posted = batch.parsed, batch.posted
        self._owed |= posted.balances()
        self._seen.add(parsed, posted)
        signals = self._follow_gates()
        signalled_s = self._monotonic()
        self._keep_owed_ends()
        reach(CrashPoint.METER_BEFORE_ACK)
        deferred = {call.stream_id for call in posted.deferred}
        self._ack([entry.stream_id for entry in parsed if entry.stream_id not in deferred])
        reach(CrashPoint.METER_AFTER_ACK)
        took_s = self._monotonic() - batch.started_s
        self._tell(batch, signals, took_s)
        EVENT_TO_COMMIT_SECONDS.observe(
            max(age_s(parsed[0].stream_id, self._clock()) - (self._monotonic() - batch.committed_s), 0.0)
        )
        COMMIT_TO_SIGNAL_SECONDS.observe(signalled_s - batch.committed_s)
        BATCH_SECONDS.observe(took_s)
        BATCH_EVENTS.observe(len(parsed))
        count_posted(posted)
        self._reloads.follow(posted.reloads)

    def _tell(self, batch: CommittedBatch, signals: Sequence[Signal], took_s: float) -> None:
        """A line for each rejected event; below info one for the batch, with the range of stream ids in which its calls are."""
        parsed, posted = batch.parsed, batch.posted
        for rejected in posted.rejected:
            self._log.warning(
                "event rejected",
                stream_id=rejected.stream_id,
                reason=rejected.rejection.reason.value,
                detail=rejected.rejection.detail,
            )
        if not self._log.is_enabled_for(logging.DEBUG):
            return
        if self._tell_calls:
            self._tell_each(batch)
        self._log.debug(
            "batch",
            first_stream_id=parsed[0].stream_id,
            last_stream_id=parsed[-1].stream_id,
            events=len(parsed),
            debited=len(posted.debits),
            unbilled=posted.unbilled,
            duplicates=posted.duplicates,
            rejected=posted.rejections_by_reason(),
            deferred=len(posted.deferred),
            orgs=len(posted.changes),
            signals=len(signals),
            reloads=len(posted.reloads.attempts),
            recovered=batch.recovered,
            to_commit_ms=round((batch.committed_s - batch.started_s) * 1_000, 1),
            took_ms=round(took_s * 1_000, 1),
        )

    def _tell_each(self, batch: CommittedBatch) -> None:
        """A line for each call: what became of it."""
        posted = batch.posted
        outcomes = {call.stream_id: "debited" for call in posted.debits}
        outcomes |= {call.stream_id: "deferred" for call in posted.deferred}
        outcomes |= {rejected.stream_id: "rejected" for rejected in posted.rejected}
        charged = {
            call.stream_id: call.charge.amount_cents for call in posted.debits if call.charge is not None
        }
        for entry in batch.parsed:
            event = entry.event
            if not isinstance(event, Rejection):
                self._log.debug(
                    "call",
                    outcome=outcomes.get(entry.stream_id)
                    or ("duplicate" if event.duration_us else "unbilled"),
                    org_id=event.org_id,
                    call_id=event.call_id,
                    stream_id=entry.stream_id,
                    amount_cents=charged.get(entry.stream_id),
                )

    def _follow_gates(self) -> list[Signal]:
        """Bring the gates to the balances that were committed.

        Never holds up the ack: a Redis that has no memory left refuses gates, but entries must leave it. What is still owed is
        told with the next batch; if this process dies before, the reconciler finds it.
        """
        try:
            followed = self._gates.try_to_follow(self._owed.values(), self._clock(), self._seen)
            if followed.failed:
                raise redis.ResponseError(f"{followed.failed} gates could not follow: {followed.error}")
        except redis.RedisError as error:
            self._log.warning("gates can't follow for now", owed=len(self._owed), error=sentence(error))
            return []
        if followed.holds_refused != self._holds_refused:
            self._holds_refused = followed.holds_refused
            if self._holds_refused:
                self._log.warning(
                    "holds can't end: give the meter's user of Redis the right to the keys holds:*",
                    error=self._holds_refused,
                )
        self._owed.clear()
        self._seen.clear()
        return followed.signals

    def _keep_owed_ends(self) -> None:
        """Keep in Postgres which calls' holds couldn't be ended, before their entries leave the stream: nothing else tells.

        Unlike a gate, which the reconciler finds by its version. Through outages, as the ack: what isn't acked comes again.
        """
        waits = backoff_s()
        while self._seen:
            try:
                owed = self._gates.calls_of_holders(self._seen.ended())
                if owed:
                    with transaction(self._engine) as connection:
                        keep_owed_ends(connection, owed)
                    self._log.warning("holds are left to the jobs to end", calls=sum(map(len, owed.values())))
                self._seen.clear()
                break
            except (redis.RedisError, SQLAlchemyError) as error:
                if isinstance(error, SQLAlchemyError) and diagnose(error) is Failure.POISON:
                    raise
                if isinstance(error, redis.RedisError) and refuses(error):
                    self._seen.clear()  # whoever may not ask about holds can't end any, and entries must leave all the same
                    break
                wait_s = next(waits)
                self._log.warning(
                    "could not keep which holds are to end", error=sentence(error), wait_s=round(wait_s, 2)
                )
                self._stop.wait(wait_s)
                self._follow_gates()
            if self._seen and self._stop.is_set():
                raise StoppedError

    def _ack(self, stream_ids: Sequence[str]) -> None:
        """Take what is committed out of the stream; through outages, because acking twice does no harm."""
        waits = backoff_s()
        while stream_ids:
            try:
                self._stream.ack(stream_ids)
                break
            except redis.RedisError as error:
                wait_s = next(waits)
                self._log.warning("could not ack a batch", error=sentence(error), wait_s=round(wait_s, 2))
                self._stop.wait(wait_s)
            if self._stop.is_set():
                raise StoppedError
