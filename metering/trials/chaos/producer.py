"""A telephony layer that keeps its own records and sends until it is sure, whatever becomes of Valkey meanwhile."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

import redis

from metering.runtime.backoff import backoff_s
from metering.runtime.names import EVENT_FIELD, STREAM, gate_key
from metering.sandbox.telephony.calls import Attempt, Push
from metering.sandbox.telephony.simulation import Telephony
from metering.trials.chaos.journal import CallKey, Pushed

TICK_S: Final = 0.02
PIPELINE_LIMIT: Final = 500


class Producer(threading.Thread):
    """Asks each call's gate before it starts, refuses it where there is no answer, and pushes its event when it has ended."""

    def __init__(self, name: str, client: redis.Redis, telephony: Telephony) -> None:
        super().__init__(name=name, daemon=True)
        self.pushed = Pushed()
        self.let_in = 0
        self.refused = 0
        """Calls refused by their gates."""
        self.unanswered = 0
        """Calls refused because the gate could not be asked."""
        self.error: BaseException | None = None
        """What ended it early."""
        self._client = client
        self._telephony = telephony
        self._running: set[CallKey] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let no more calls start, and return when what was begun to be pushed is in."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def send_again(self, since_s: float | None = None) -> int:
        """Send the whole record again, or what of it was sent since then; give the number of events. For any thread."""
        payloads = self.pushed.payloads(since_s)
        self._deliver(payloads)
        return len(payloads)

    def run(self) -> None:
        try:
            for due in self._batches():
                attempts = [item for item in due if isinstance(item, Attempt)]
                if attempts:
                    self._ask(attempts)
                pushes = [
                    item
                    for item in due
                    if isinstance(item, Push) and (item.org_id, item.call_id) in self._running
                ]
                for push in pushes:
                    self.pushed.add(push, time.monotonic())
                self._deliver([push.payload for push in pushes])
        except BaseException as error:  # noqa: BLE001 - told at the end, with all else that is wrong
            self.error = error

    def _batches(self) -> Iterator[list[Attempt | Push]]:
        """What is due, in time or as soon as it can be."""
        began_s = time.monotonic()
        schedule = self._telephony.schedule()
        for first in schedule:
            wait_s = began_s + first.at_s - time.monotonic()
            if self._stopped.wait(max(wait_s, TICK_S) if wait_s > 0 else 0):
                return
            elapsed_s = time.monotonic() - began_s
            due = [first]
            for item in schedule:
                due.append(item)
                if item.at_s > elapsed_s or len(due) == PIPELINE_LIMIT:
                    break  # the last may be early by one call's distance, which nobody minds
            yield due

    def _ask(self, attempts: Sequence[Attempt]) -> None:
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for attempt in attempts:
                    pipeline.hget(gate_key(attempt.org_id), "state")
                states = pipeline.execute()
        except redis.RedisError:
            self.unanswered += len(attempts)
            return
        for attempt, state in zip(attempts, states, strict=True):
            if state == b"open":
                self.let_in += 1
                self._running.add((attempt.org_id, attempt.call_id))
            else:
                self.refused += 1

    def _deliver(self, payloads: Sequence[bytes]) -> None:
        """Append all, and each again where it isn't certain that it was taken."""
        for first in itertools.count(0, PIPELINE_LIMIT):
            left = list(payloads[first : first + PIPELINE_LIMIT])
            if not left:
                return
            waits = backoff_s(longest_s=1.0)
            while left:
                left = self._try(left)
                if left:
                    time.sleep(next(waits))

    def _try(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Append; give those that may not have been."""
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for payload in payloads:
                    pipeline.xadd(STREAM, {EVENT_FIELD: payload})
                answers = pipeline.execute(raise_on_error=False)
        except redis.RedisError:
            return list(payloads)
        self.pushed.taken([answer for answer in answers if isinstance(answer, bytes)])
        return [
            payload
            for payload, answer in zip(payloads, answers, strict=True)
            if not isinstance(answer, bytes)
        ]
