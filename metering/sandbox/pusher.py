"""Pushing simulated calls on their schedule."""

import itertools
import threading
import time
from collections.abc import Iterable

import redis

from metering.sandbox.telephony import Push, Record
from workers.stream import EVENT_FIELD, STREAM

TICK_S = 0.02
"""Events due within a tick go out together: a wake-up for each would take the processor from the meters."""
PIPELINE_LIMIT = 500


class Pusher(threading.Thread):
    """Pushes each event when it is due, whatever becomes of those before (an open loop), and keeps the record of it.

    What could not be pushed in time goes out as soon as it can. Read the record's totals at any time, the rest of it once the
    thread has ended.
    """

    def __init__(self, client: redis.Redis, pushes: Iterable[Push]) -> None:
        super().__init__(name="telephony", daemon=True)
        self.record = Record()
        self.stream_ids: set[str] = set()
        self.first_and_last: tuple[str, str] | None = None
        """The ids of the first and the last entry; None before anything is pushed."""
        self.took_s = 0.0
        """How long the pushing took, once it has ended."""
        self.error: redis.RedisError | None = None
        """What ended the pushing. It is then uncertain which of the last events were taken in."""
        self._client = client
        self._pushes = iter(pushes)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Push no more, and return when the last one is in."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        began_s = time.monotonic()
        held: Push | None = None
        try:
            while not self._stopped.is_set():
                elapsed_s = time.monotonic() - began_s
                due: list[Push] = []
                for push in itertools.chain([held] if held else [], self._pushes):
                    held = push
                    if push.at_s > elapsed_s or len(due) == PIPELINE_LIMIT:
                        break
                    due.append(push)
                else:
                    held = None
                if due:
                    self._push(due)
                if held is None:
                    return
                self._stopped.wait(max(held.at_s - elapsed_s, TICK_S) if held.at_s > elapsed_s else 0)
        except redis.RedisError as error:
            self.error = error
        finally:
            self.took_s = time.monotonic() - began_s

    def _push(self, due: list[Push]) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for push in due:
                pipeline.xadd(STREAM, {EVENT_FIELD: push.payload})
            stream_ids = [stream_id.decode() for stream_id in pipeline.execute()]
        self.stream_ids.update(stream_ids)
        first, _ = self.first_and_last or (stream_ids[0], "")
        self.first_and_last = (first, stream_ids[-1])
        for push in due:
            self.record.add(push)
