"""The switch: lets simulated calls start as their gates say, and pushes the events of those that have ended."""

import heapq
import itertools
import threading
import time
from collections.abc import Iterable, Sequence

import redis

from metering.runtime.names import EVENT_FIELD, SIGNALS_LOG, STREAM, gate_key
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.call_record import CallRecord
from metering.sandbox.telephony.calls import Attempt, Push
from metering.sandbox.telephony.signal_history import newest_position

TICK_S = 0.02
"""What is due within a tick goes out together: a wake-up for each would take the processor from the meters."""
PIPELINE_LIMIT = 500


class Switch(threading.Thread):
    """Works off a schedule, whatever becomes of what was before (an open loop), and keeps account of it.

    Each call's gate is asked before it starts. Where Redis can't be asked this switch refuses: it rather turns a caller away
    than lets one in whom nobody may bill. A call that runs is never cut, and its event is pushed when it ends. What could not
    be done in time is done as soon as it can. Read totals at any time, the rest once the thread has ended.
    """

    def __init__(self, client: redis.Redis, schedule: Iterable[Attempt | Push]) -> None:
        super().__init__(name="telephony", daemon=True)
        self.record = CallRecord()
        self.admissions = AdmissionLog()
        self.running = 0
        """How many calls run at the moment."""
        self.stream_ids: set[str] = set()
        self.first_and_last: tuple[str, str] | None = None
        """The ids of the first and the last entry; None before anything is pushed."""
        self.began_at_s = 0.0
        """When it began, in seconds of the system's clock, which Redis's ids also have."""
        self.took_s = 0.0
        """How long it took, once it has ended."""
        self.error: redis.RedisError | None = None
        """What ended the pushing. It is then uncertain which of the last events were taken in."""
        self._client = client
        self._schedule = iter(schedule)
        self._ends: list[float] = []
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let no more calls start and push no more; return when the last event is in. Calls that run stay unpushed."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        self.began_at_s, began_s = time.time(), time.monotonic()
        held: Attempt | Push | None = None
        try:
            while not self._stopped.is_set():
                elapsed_s = time.monotonic() - began_s
                due: list[Attempt | Push] = []
                for item in itertools.chain([held] if held else [], self._schedule):
                    held = item
                    if item.at_s > elapsed_s or len(due) == PIPELINE_LIMIT:
                        break
                    due.append(item)
                else:
                    held = None
                self._work_off(due)
                while self._ends and self._ends[0] <= elapsed_s:
                    heapq.heappop(self._ends)
                self.running = len(self._ends)
                if held is None:
                    return
                self._stopped.wait(max(held.at_s - elapsed_s, TICK_S) if held.at_s > elapsed_s else 0)
        except redis.RedisError as error:
            self.error = error
        finally:
            self.took_s = time.monotonic() - began_s

    def _work_off(self, due: Sequence[Attempt | Push]) -> None:
        if attempts := [item for item in due if isinstance(item, Attempt)]:
            self._ask(attempts)
        calls = self.admissions.calls
        if pushes := [
            item for item in due if isinstance(item, Push) and (item.org_id, item.call_id) in calls
        ]:
            self._push(pushes)

    def _ask(self, attempts: Sequence[Attempt]) -> None:
        """Ask the gate of each call. A transaction only for the sake of the account: it says after which signal that was."""
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xrevrange(SIGNALS_LOG, count=1)
                for attempt in attempts:
                    pipeline.hget(gate_key(attempt.org_id), "state")
                newest, *states = pipeline.execute(raise_on_error=False)
            if isinstance(newest, redis.RedisError):
                raise newest
        except redis.RedisError as error:
            self.admissions.unanswered += len(attempts)
            self.admissions.error = error
            return
        asked_at = newest_position(newest)
        for attempt, state in zip(attempts, states, strict=True):
            if isinstance(state, redis.RedisError):  # the key holds something else
                self.admissions.unanswered += 1
                self.admissions.error = state
            elif self.admissions.decide(attempt, state, asked_at):
                heapq.heappush(self._ends, attempt.ended_s)

    def _push(self, due: Sequence[Push]) -> None:
        calls = self.admissions.calls
        sent_s = time.monotonic()
        for push in due:
            call = calls[push.org_id, push.call_id]
            call.pushed_s = sent_s if call.pushed_s is None else call.pushed_s
        with self._client.pipeline(transaction=False) as pipeline:
            for push in due:
                pipeline.xadd(STREAM, {EVENT_FIELD: push.payload})
            stream_ids = [stream_id.decode() for stream_id in pipeline.execute()]
        self.stream_ids.update(stream_ids)
        first, _ = self.first_and_last or (stream_ids[0], "")
        self.first_and_last = (first, stream_ids[-1])
        for push in due:
            self.record.add(push)
