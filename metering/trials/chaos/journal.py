"""The independent record of a run: what producers pushed and what customers were told. Nothing here asks the product."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from metering.rules.rejections import Reason
from metering.sandbox.telephony.calls import RATES_CENTS_PER_MINUTE, Push

CallKey = tuple[int, int]
"""An org and the id of one of its calls."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call has to cost."""

    minutes: int
    cents: int


class Pushed:
    """What one producer has sent, or has been about to send: its own store of call records, kept before anything is sent.

    One thread adds, any may read.
    """

    def __init__(self) -> None:
        self.calls: dict[CallKey, Cost] = {}
        self.events = 0
        """Different pushes; what was sent again is not among them."""
        self.sent = 0
        """How many entries the stream took, all told."""
        self.last_id = (0, 0)
        """The highest id that the stream gave one of our entries."""
        self.unbillable: set[bytes] = set()
        """Hashes of the events that must be rejected."""
        self.contradictions: list[tuple[bytes, bytes]] = []
        """Hashes of two events for the same call that contradict each other: one of them must be rejected, either."""
        self._payloads: list[tuple[float, bytes]] = []
        self._first_of: dict[CallKey, bytes] = {}
        self._lock = threading.Lock()

    def add(self, push: Push, now_s: float) -> None:
        """Take note of an event that is going to be sent, at `now_s` on the monotonic clock."""
        sha256 = hashlib.sha256(push.payload).digest()
        key = (push.org_id, push.call_id)
        with self._lock:
            self._payloads.append((now_s, push.payload))
        self.events += 1
        if push.reason is Reason.CONFLICTING_DUPLICATE:
            self.contradictions.append((self._first_of[key], sha256))
        elif push.reason is not None:
            self.unbillable.add(sha256)
        elif push.duration_us and not push.repeated:
            self._first_of[key] = sha256
            minutes = (push.duration_us + 59_999_999) // 60_000_000
            self.calls[key] = Cost(minutes, minutes * RATES_CENTS_PER_MINUTE[push.tier])

    def taken(self, stream_ids: Sequence[bytes]) -> None:
        """Take note of entries that the stream took."""
        ids = [tuple(map(int, each.split(b"-"))) for each in stream_ids]
        with self._lock:
            self.sent += len(ids)
            self.last_id = max([self.last_id, *((ms, number) for ms, number in ids)])

    def payloads(self, since_s: float | None = None) -> list[bytes]:
        """What was sent, or only what was since then, in order."""
        with self._lock:
            return [payload for at_s, payload in self._payloads if since_s is None or at_s >= since_s]


class Told(Enum):
    """What a customer was told of a top-up in the end."""

    NOTHING = auto()
    """Not even by many repeats: it may have been charged, once, or not."""
    SUCCEEDED = auto()
    DECLINED = auto()
    CHALLENGED = auto()
    """3DS, which the customer hasn't passed: it may be charged or not."""
    AUTHENTICATED = auto()
    """3DS, which the customer has passed: it must be charged."""


@dataclass(slots=True)
class TopUp:
    """One top-up that a customer wanted, however often it had to be asked for. No other of the org has its amount."""

    org_id: int
    amount_cents: int
    told: Told = Told.NOTHING
    intent_id: str | None = None
    forgotten: bool = False
    """While it was asked for without a key, the database was restored or the clock jumped by days; with a key both, as Stripe
    keeps keys for a day. A repeat could only be taken for another one."""


class Wanted:
    """All top-ups that customers wanted. Each is changed by its customer alone."""

    def __init__(self) -> None:
        self.top_ups: list[TopUp] = []
        self.problems: list[str] = []
        """What customers were told that they never should be."""
        self._lock = threading.Lock()

    def add(self, top_up: TopUp) -> TopUp:
        """Take note of one before it is asked for."""
        with self._lock:
            self.top_ups.append(top_up)
        return top_up

    def complain(self, problem: str) -> None:
        """Take note of an answer that should not be."""
        with self._lock:
            self.problems.append(problem)
