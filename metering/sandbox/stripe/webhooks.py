"""Webhooks: events are sent to a URL, by threads of their own, again and again until it takes them."""

import heapq
import itertools
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import structlog

from metering.runtime.clock import Clock
from metering.sandbox.stripe.faults import Fault, Faults, WebhookFault
from metering.sandbox.stripe.signatures import signature_header
from metering.sandbox.stripe.store import Store
from metering.sandbox.stripe.values import PRIVATE, Json, shown, unix_seconds

RETRY_DELAYS_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0) + (8.0,) * 60
"""How long after each failure the next try is: quick at first, for the demo and the tests, and given up after some minutes."""

SENDERS: Final = 4
TIMEOUT_S: Final = 10.0

_SUCCESS: Final = range(200, 300)

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Target:
    """Where webhooks go, and the secrets that sign them: the newest, and while it is rotated the one before."""

    url: str
    secrets: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for what can't be a target."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{self.url!r} is no address that webhooks could go to.")
        if not self.secrets:
            raise ValueError("Webhooks need a secret to be signed with.")


class _Due(NamedTuple):
    """One sending: when, in seconds of the monotonic clock, and how many there have been before."""

    at_s: float
    number: int
    event_id: str
    tries: int
    account: str


class Webhooks:
    """Sends events. While it is stopped they wait, on disk too where the store has one."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        faults: Faults[WebhookFault],
        target: Target | None,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._faults = faults
        self._retry_delays_s = retry_delays_s
        self._targets: dict[str, Target] = {}
        """By account."""
        self._changed = threading.Condition()
        self._due: defaultdict[str, list[_Due]] = defaultdict(list)
        """By account, each a heap: what is due for one that has no target any more holds up no other."""
        self._sending = 0
        self._connections: set[HTTPConnection] = set()
        self._numbers = itertools.count()
        self._stopping = False
        self._senders: list[threading.Thread] = []
        self.sent = 0
        """How many webhooks were taken with a 2xx."""
        store.on_events = self._announce
        self.set_target(target, store.first_account)

    def set_target(self, target: Target | None, account: str) -> None:
        """Send an account's to another place, also what has not been taken yet; None: its events from now on are for nobody."""
        with self._changed:
            self._targets.pop(account, None)
            if target is not None:
                self._targets[account] = target
            self._store.announced = set(self._targets)
            self._changed.notify_all()

    def start(self) -> None:
        """Begin to send, with what was left over from before."""
        with self._store.work() as work:
            left = [event["id"] for event in work.newest("event") if event["pending_webhooks"]]
        with self._changed:
            known = {due.event_id for due in self._all_due()}
            for event_id in reversed(left):
                if event_id not in known:
                    self._push(event_id, 0, 0.0)
        self._senders = [threading.Thread(target=self._send_for_ever, daemon=True) for _ in range(SENDERS)]
        for sender in self._senders:
            sender.start()

    def stop(self) -> None:
        """Send no more; what is being sent is cut off, and sent again by the next sandbox on the same path."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            for connection in self._connections:  # who takes a webhook may hang
                _cut(connection)
        for sender in self._senders:
            sender.join()

    def forget(self) -> None:
        """Drop everything that is waiting to be sent."""
        with self._changed:
            self._due.clear()
            self._changed.notify_all()

    def waiting(self) -> int:
        """How many sendings are due, now or later, or under way."""
        with self._changed:
            return len(self._all_due()) + self._sending

    def wait_delivered(self, limit_s: float) -> bool:
        """Wait until nothing is left to send; False if that takes longer than `limit_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._all_due() and not self._sending, limit_s)

    def resend(self, event_id: str) -> None:
        """Send an event once more, as Stripe's dashboard and CLI can."""
        with self._changed:
            self._push(event_id, 0, 0.0)

    def _announce(self, events: Sequence[Json]) -> None:
        announced = [event for event in events if self._store.owner_of(event) in self._store.announced]
        if not announced:
            return
        now = self._store.now()
        dropped = []
        with self._changed:
            for event in announced:
                fault = self._faults.meet(event["type"], now)
                if fault is not None and fault.kind is WebhookFault.DROP:
                    dropped.append(event)
                    continue
                self._push(event["id"], 0, 0.0 if fault is None else _delay_s(fault))
                if fault is not None and fault.kind is WebhookFault.DUPLICATE:
                    self._push(event["id"], 0, fault.seconds)
        for event in dropped:
            self._give_up(event["id"])

    def _all_due(self) -> list[_Due]:
        return [due for each in self._due.values() for due in each]

    def _push(self, event_id: str, tries: int, delay_s: float) -> None:
        account = self._store.owner(event_id)
        due = _Due(time.monotonic() + delay_s, next(self._numbers), event_id, tries, account)
        heapq.heappush(self._due[account], due)
        self._changed.notify_all()

    def _send_for_ever(self) -> None:
        while True:
            taken = self._next()
            if taken is None:
                return
            due, target = taken
            taken_well = False
            try:
                taken_well = self._send(due.event_id, target)
            except Exception:
                log.exception("a webhook could not be sent", event_id=due.event_id)
            self._finish(due, taken_well)

    def _next(self) -> tuple[_Due, Target] | None:
        """The next that is due, as soon as it is; None when it is time to stop."""
        with self._changed:
            while not self._stopping:
                now_s = time.monotonic()
                first = min(
                    (due[0] for account, due in self._due.items() if due and account in self._targets),
                    default=None,
                )
                if first is not None and first.at_s <= now_s:
                    self._sending += 1
                    return heapq.heappop(self._due[first.account]), self._targets[first.account]
                self._changed.wait(None if first is None else first.at_s - now_s)
            return None

    def _send(self, event_id: str, target: Target) -> bool:
        event = self._store.peek(event_id)
        if event is None:  # the state was reset
            return True
        body = msgspec.json.format(msgspec.json.encode(shown(event)), indent=2)
        parts = urlsplit(target.url)
        connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks) sandbox",
            "Stripe-Sandbox": "not-stripe",
            "Stripe-Signature": signature_header(body, target.secrets, unix_seconds(self._clock())),
        }
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        try:
            with self._connected(connect(parts.hostname or "", parts.port, timeout=TIMEOUT_S)) as connection:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read()
        except (OSError, HTTPException) as error:
            log.debug("a webhook was not taken", event_id=event_id, error=str(error))
            return False
        return answer.status in _SUCCESS

    @contextmanager
    def _connected(self, connection: HTTPConnection) -> Iterator[HTTPConnection]:
        with self._changed:
            if self._stopping:
                raise ConnectionAbortedError
            self._connections.add(connection)
        try:
            yield connection
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()

    def _finish(self, due: _Due, taken_well: bool) -> None:
        again = not taken_well and due.tries < len(self._retry_delays_s)
        try:
            if taken_well:
                self._mark(due.event_id, given_up=False)
            elif not again:
                log.warning("a webhook is given up", event_id=due.event_id)
                self._give_up(due.event_id)
        finally:
            with self._changed:
                self._sending -= 1
                self.sent += taken_well
                if again:
                    self._push(due.event_id, due.tries + 1, self._retry_delays_s[due.tries])
                self._changed.notify_all()

    def _give_up(self, event_id: str) -> None:
        self._mark(event_id, given_up=True)

    def _mark(self, event_id: str, *, given_up: bool) -> None:
        """Note that an event needs no more sending."""
        with self._store.work() as work:
            held = work.get(event_id, "event")
            if held is not None and held["pending_webhooks"]:
                event = work.edit(held)
                event["pending_webhooks"] = 0
                event[PRIVATE]["given_up"] = given_up


def _cut(connection: HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _delay_s(fault: Fault[WebhookFault]) -> float:
    if fault.kind is WebhookFault.DELAY:
        return fault.seconds
    if fault.kind is WebhookFault.REORDER:  # the more are still to come, the longer this one waits
        return fault.seconds * (1 + (fault.left or 0))
    return 0.0
