"""What a server refuses, as far as this process has seen: told at once and again, and by its health, until it is mended.

An outage passes by itself, and a process that waits for its end is well. A wrong password, a missing right or a cache's settings
don't pass: whoever runs this has to be told, also where nobody reads the log.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog

from metering.runtime.clock import Clock, system_clock

POSTGRES: Final = "postgres"
REDIS: Final = "redis"

SAID_EVERY_S: Final = 30.0
"""How often a refusal that goes on is logged."""
STATEMENT_LASTS_S: Final = 30.0
"""How long a refused statement counts: whatever needs it is tried again before."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that a server refuses."""

    server: str
    """`postgres` or `redis`."""
    reason: str
    """In the server's words, or in ours with the remedy."""
    since: datetime
    last_s: float
    said_s: float


class Health:
    """One process's. Any thread may tell it, and ask."""

    def __init__(
        self, *, clock: Clock = system_clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._refusals: dict[tuple[str, str], Refusal] = {}
        self._logs = False

    def log_refusals(self) -> None:
        """Log them from now on, as a role does; a command tells its user by itself."""
        self._logs = True

    def connection_refused(self, server: str, reason: str) -> None:
        """The server takes no connection, or is none that can be worked with. Counts until `accepted`."""
        self._refused(server, "connection", reason)

    def statement_refused(self, server: str, reason: str) -> None:
        """The server won't do what it was asked, of a connection that it took."""
        self._refused(server, "statement", reason)

    def unfit(self, server: str, reason: str | None) -> None:
        """What is wrong with how the server is set up; None: nothing, any more."""
        if reason is not None:
            self._refused(server, "setup", reason)
        else:
            self._end(server, "setup")

    def accepted(self, server: str) -> None:
        """The server has taken a connection."""
        if self._refusals:
            self._end(server, "connection")

    def forget(self) -> None:
        """Know of nothing, and log nothing, as at the start."""
        with self._lock:
            self._refusals.clear()
        self._logs = False

    def refusals(self) -> list[Refusal]:
        """What is refused now. Empty: this process is well."""
        oldest_s = self._monotonic() - STATEMENT_LASTS_S
        with self._lock:
            for key in [
                key
                for key, each in self._refusals.items()
                if key[1] == "statement" and each.last_s < oldest_s
            ]:
                del self._refusals[key]
            return list(self._refusals.values())

    def _refused(self, server: str, kind: str, reason: str) -> None:
        reason = " ".join(reason.split())[:500]
        now_s = self._monotonic()
        with self._lock:
            before = self._refusals.get((server, kind))
            if before is None or before.reason != reason:
                since = self._clock() if before is None else before.since
                before = Refusal(server, reason, since, now_s, float("-inf"))
            says = now_s - before.said_s >= SAID_EVERY_S
            self._refusals[server, kind] = replace(
                before, last_s=now_s, said_s=now_s if says else before.said_s
            )
        if says and self._logs:
            log.error("a server refuses, and waiting alone won't help", server=server, reason=reason)

    def _end(self, server: str, kind: str) -> None:
        with self._lock:
            ended = self._refusals.pop((server, kind), None)
        if ended is not None and self._logs:
            log.warning("a server refuses no longer", server=server, reason=ended.reason)


HEALTH: Final = Health()
"""This process's."""
