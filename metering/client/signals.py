"""Following the log of signals, without missing any."""

import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

import redis

from metering.client import limits
from metering.client.answers import as_text
from metering.client.backoff import backoff_s
from metering.client.closing import ClosedByWith
from metering.client.errors import SignalsLost, Unreachable, failure_of
from metering.client.keys import SIGNAL_FIELD, SIGNALS_LOG
from metering.client.primary import LeavesReplicas, check_role, leave_if_told

ENTRY_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_BEFORE_ALL: Final = "0-0"
_STATES_BEFORE: Final = {"balance.exhausted": "exhausted", "balance.restored": "open"}
"""What signals that an older version of the billing has said mean: they don't hold the state."""

_logger = logging.getLogger("metering.client")


@dataclass(frozen=True, slots=True)
class Signal:
    """One entry of the log of signals."""

    id: str
    """What to give to signals() as `since`, to go on after this one."""
    type: str
    """`balance.exhausted`, `balance.restored`, `org.suspended`, `org.resumed`, or `auto_reload.` and more; there will be others,
    so ignore what you don't know.

    Look at it first: only signals about a gate have a state, a balance and a version.
    """
    org_id: int
    at: datetime
    """When it was said; aware."""
    balance_cents: int | None
    """Whole US cents. None where the signal isn't about a balance."""
    version: int | None
    """The gate's. A gate that was read with this version or a higher one knows of it already."""
    raw: dict[str, Any] = field(repr=False, hash=False)
    """The whole message."""
    state: str | None = None
    """The gate's from now on: `open`, `exhausted` or `suspended`. None where the signal isn't about a gate.

    `org.resumed` needs it: an org that is resumed may be open or exhausted.
    """


class Signals(ClosedByWith):
    """An iterator of signals, in the order in which they were said; waits for the next, for ever.

    It outlives disconnects and restarts of Redis (given its append-only file), and goes on where it was: nothing is missing and
    nothing comes twice. It says so in the log of this module. One thread may use it; any may close() it, also from a signal
    handler: then it ends.

    next() raises SignalsLost when it can't go on where it was, and Refused.
    """

    def __init__(self, client: redis.Redis, since: str | None, ended: Callable[[], bool]) -> None:
        self._client = client
        self._asks_role = not issubclass(client.connection_pool.connection_class, LeavesReplicas)
        self._role_due_s = 0.0
        self._ended = ended
        self._closed = False
        self._read: deque[Signal] = deque()
        self._waits_s: Iterator[float] | None = None
        self._removed_before = 0
        timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
        self._block_ms = max(
            int(1000 * min(limits.BLOCK_S, timeout_s / 2 if timeout_s else limits.BLOCK_S)), 1
        )
        if since is None:
            since = self._last_id()
        self._read_up_to = since
        self.position = since
        """What to give to signals() as `since` to go on from here: the id of the last signal given, if there was one."""

    def close(self) -> None:
        """End the iteration: within about a second where next() waits, or a time-out where Redis is away."""
        self._closed = True

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Signal:
        # Plain flags, no lock or event: a signal handler may run in the thread that would hold it.
        while not (self._closed or self._ended()):
            if self._read:
                signal = self._read.popleft()
                self.position = signal.id
                return signal
            self._read_or_wait()
        raise StopIteration

    def _last_id(self) -> str:
        """The id of the newest signal; where there is none, everything that comes is new."""
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xrevrange(SIGNALS_LOG, count=1)
                pipeline.xinfo_stream(SIGNALS_LOG)
                newest, about = pipeline.execute(raise_on_error=False)
            if isinstance(newest, Exception):
                raise newest
            if not newest:
                self._removed_before = _removed(about)
        except redis.RedisError as error:
            leave_if_told(self._client, error)
            raise failure_of(error, "the signals can't be listened to: call signals() again") from error
        return as_text(newest[0][0]) if newest else _BEFORE_ALL

    def _read_or_wait(self) -> None:
        try:
            self._ask_role_if_due()
            entries = self._next_entries()
            if not entries:
                # Only to be woken: which signals come next, and whether all are there, is decided above.
                self._client.xread({SIGNALS_LOG: self._read_up_to}, count=1, block=self._block_ms)
        except redis.RedisError as error:
            leave_if_told(self._client, error)
            failure = failure_of(error, "the signals can't be read")
            if not isinstance(failure, Unreachable):
                raise failure from error
            if self._waits_s is None:
                self._waits_s = backoff_s()
                _logger.warning("signals: Redis is away and they go on when it is back: %s", error)
            time.sleep(next(self._waits_s))
            return
        if self._waits_s is not None:
            self._waits_s = None
            _logger.info("signals: Redis is back, and they go on after %s", self._read_up_to)
        for entry_id, fields in entries:
            self._read_up_to = as_text(entry_id)
            signal = _signal(self._read_up_to, fields)
            if signal is not None:
                self._read.append(signal)

    def _ask_role_if_due(self) -> None:
        """Ask a client that was given; of our own each connection asks by itself."""
        if self._asks_role and time.monotonic() >= self._role_due_s:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("HELLO")  # type: ignore[no-untyped-call]
                check_role(*pipeline.execute(raise_on_error=False))
            self._role_due_s = time.monotonic() + limits.ROLE_CHECK_S

    def _next_entries(self) -> list[Any]:
        """What stands in the log after the last entry read; SignalsLost unless it is certain that nothing is missing.

        It is certain while that entry is still there itself, for the log loses the oldest first. All else is uncertain, and
        silence would leave somebody with a wrong state for ever:
        - The log was cut off behind it. The reader was away for too long.
        - The log was emptied, or began anew. An org that became exhausted while it had no gate has no signal either.
        - A crash took the end of the log with it (its file is written to disk every second), and the clock may have been set
          back. Taking up at the end that is left would be wrong: of two changes that are gone, the reader may have seen one,
          and the gate, back at the state before both, needs no third.
        """
        if self._read_up_to != _BEFORE_ALL:
            found: Any = self._client.xrange(SIGNALS_LOG, min=self._read_up_to, count=limits.CHUNK + 1)
            if found and as_text(found[0][0]) == self._read_up_to:
                return list(found[1:])
        else:
            # No entry to go by, but none may have been removed since. A log that was emptied before it was first read looks
            # like one that began late, and that is no harm: either way no gate was open before.
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xrange(SIGNALS_LOG, count=limits.CHUNK)
                pipeline.xinfo_stream(SIGNALS_LOG)
                found, about = pipeline.execute(raise_on_error=False)
            if _removed(about) == self._removed_before:
                return list(found)
        raise SignalsLost(
            f"The log of signals doesn't hold what came after {self._read_up_to}, or not for certain. "
            "Call signals() again, then gate() of every org whose state you keep, then go on with the new signals."
        )


def _removed(about: Any) -> int:
    """How many entries the log had and no longer has."""
    if isinstance(about, redis.ResponseError) and "no such key" in str(about):
        return 0
    if isinstance(about, Exception):
        raise about
    return int(about["entries-added"]) - int(about["length"])


def _signal(entry_id: str, fields: Mapping[Any, Any]) -> Signal | None:
    """The signal in an entry of the log; None for what isn't one, which somebody else must have put there."""
    try:
        raw = json.loads({as_text(name): text for name, text in fields.items()}[SIGNAL_FIELD])
        return Signal(
            entry_id,
            str(raw["type"]),
            int(raw["org_id"]),
            datetime.fromisoformat(raw["at"]),
            raw.get("balance_cents"),
            raw.get("version"),
            raw,
            raw.get("state", _STATES_BEFORE.get(str(raw["type"]))),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        _logger.warning("signals: entry %s is passed over, it is no signal: %r", entry_id, error)
        return None
