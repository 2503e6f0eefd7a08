"""What Stripe does wrong during a run, by the sandbox's own knobs."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final

import msgspec

from metering.sandbox.stripe.faults import RequestFault, WebhookFault
from metering.sandbox.stripe.remote import control

REQUESTS: Final = {
    RequestFault.ERROR_BEFORE: 0.06,
    RequestFault.ERROR_AFTER: 0.06,
    RequestFault.ERROR_STORED: 0.02,
    RequestFault.DROP_BEFORE: 0.06,
    RequestFault.DROP_AFTER: 0.10,
    RequestFault.HANG_BEFORE: 0.03,
    RequestFault.HANG_AFTER: 0.05,
    RequestFault.CONFLICT: 0.03,
    RequestFault.RATE_LIMITED: 0.04,
    RequestFault.LOCK_TIMEOUT: 0.02,
}
"""How likely a request meets each of them while Stripe errs."""
WEBHOOKS: Final = {
    WebhookFault.DROP: 0.3,
    WebhookFault.DUPLICATE: 0.25,
    WebhookFault.DELAY: 0.1,
    WebhookFault.REORDER: 0.15,
}
LATENCY_S: Final = 1.2
HANG_S: Final = 4.0
TRIES_S: Final = 20.0
"""The sandbox may be dead or frozen at the moment."""

Params = dict[str, object]


class StripeFaults:
    """The faults that are set at the moment, kept here because the sandbox forgets them when it is killed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._requests: Params | None = None
        self._webhooks: Params | None = None
        self.met: Counter[str] = Counter()
        """How many requests and webhooks met a fault of each kind, as far as it was seen before the sandbox was killed."""
        self._seen: Mapping[str, int] = {}
        self._lock = threading.Lock()

    def err(self, seed: int, *, on: bool) -> None:
        """Let requests fail, or no longer."""
        with self._lock:
            self._requests = dict(REQUESTS) if on else None  # type: ignore[arg-type]
            self._set(seed)

    def lose_webhooks(self, seed: int, *, on: bool) -> None:
        """Let webhooks be lost, doubled, late and out of order, or no longer."""
        with self._lock:
            self._webhooks = dict(WEBHOOKS) if on else None  # type: ignore[arg-type]
            self._set(seed)

    def be_slow(self, *, on: bool) -> None:
        """Let every request take its time, or no longer."""
        self._ask("set_latency", seconds=LATENCY_S if on else 0.0)

    def clear(self) -> None:
        """Let all be well."""
        with self._lock:
            self._requests = self._webhooks = None
            self._ask("clear_faults")
            self._count()

    def _set(self, seed: int) -> None:
        self._ask("set_chaos", seed=seed, requests=self._requests, webhooks=self._webhooks, seconds=HANG_S)
        self._count()

    def _count(self) -> None:
        """Take in what was met since the last time; a sandbox that was started again counts from 0."""
        now: Mapping[str, int] = self._ask("totals")["faults_met"]
        for kind, number in now.items():
            before = self._seen.get(kind, 0)
            self.met[kind] += number - before if number >= before else number
        self._seen = now

    def _ask(self, name: str, **arguments: object) -> Any:
        """Turn a knob. Raises OSError where the sandbox stays away."""
        deadline_s = time.monotonic() + TRIES_S
        while True:
            try:
                return control(self._url, name, **arguments)
            except (OSError, HTTPException, msgspec.DecodeError):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)
