"""What goes wrong on purpose: a list of faults that requests (or webhooks) meet, each a number of times, or by chance."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from random import Random
from typing import Final, Generic, TypeVar

from metering.sandbox.stripe.errors import CARD_ERROR, INVALID_REQUEST, StripeError
from metering.sandbox.stripe.idempotency import key_in_use


class RequestFault(StrEnum):
    """What can happen to a request."""

    ERROR_BEFORE = "error_before"
    """500; nothing was executed, and no key keeps the answer."""
    ERROR_STORED = "error_stored"
    """500; nothing was executed, and the key keeps the 500 all the same: with it the request never gets through."""
    ERROR_AFTER = "error_after"
    """500, though it was executed; the key keeps the 500."""
    DROP_BEFORE = "drop_before"
    """The connection ends without an answer; nothing was executed."""
    DROP_AFTER = "drop_after"
    """The connection ends without an answer, though it was executed; the key keeps the answer nobody got."""
    HANG_BEFORE = "hang_before"
    """It is executed only after `seconds`, whether or not anybody still waits. Its key is in use until then."""
    HANG_AFTER = "hang_after"
    """It is executed at once, and answered after `seconds`."""
    UNAUTHORIZED = "unauthorized"
    """401."""
    FORBIDDEN = "forbidden"
    """403."""
    CONFLICT = "conflict"
    """409, as if the key were in use."""
    RATE_LIMITED = "rate_limited"
    """429."""
    LOCK_TIMEOUT = "lock_timeout"
    """429: something else at Stripe has the object."""
    CARD_ERROR = "card_error"
    """402: the card is declined before any PaymentIntent is made, so that the error holds none; the key keeps the answer."""


class WebhookFault(StrEnum):
    """What can happen to a webhook."""

    DROP = "drop"
    """It is never sent; only the list of events has it."""
    DUPLICATE = "duplicate"
    """It is sent twice."""
    DELAY = "delay"
    """It is sent `seconds` later."""
    REORDER = "reorder"
    """It is sent after those that come next: of `count` in a row the last is the first. `seconds` is how far they lie apart."""


Kind = TypeVar("Kind", bound=StrEnum)


@dataclass(slots=True)
class Fault(Generic[Kind]):
    """A fault, for whatever operation (or type of event) `where` matches, with stars as in file names."""

    kind: Kind
    where: str
    left: int | None
    """How many more will meet it; None for any number."""
    seconds: float
    until: int | None
    """When it ends by itself, in seconds of the sandbox's clock."""


@dataclass(frozen=True, slots=True)
class Chance(Generic[Kind]):
    """Faults by chance: each kind with its probability, drawn from a seeded generator."""

    rates: Mapping[Kind, float]
    where: str
    seconds: float
    random: Random


class Faults(Generic[Kind]):
    """The faults that are set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set: list[Fault[Kind]] = []
        self._chance: Chance[Kind] | None = None
        self.met: Counter[Kind] = Counter()
        """How often each kind was met."""

    def add(self, fault: Fault[Kind]) -> None:
        """Set one more. The one that was set first is met first."""
        with self._lock:
            self._set.append(fault)

    def by_chance(self, chance: Chance[Kind] | None) -> None:
        """Let faults happen by chance where none is set; None ends it."""
        with self._lock:
            self._chance = chance

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._set.clear()
            self._chance = None

    def left(self) -> int:
        """How many faults that are counted have not been met yet."""
        with self._lock:
            return sum(fault.left or 0 for fault in self._set)

    def meet(self, what: str, now: int) -> Fault[Kind] | None:
        """The fault that an operation (or a type of event) meets now; its `left` counts this one no more."""
        with self._lock:
            self._set = [fault for fault in self._set if fault.until is None or now < fault.until]
            for fault in self._set:
                if fnmatchcase(what, fault.where):
                    return self._met(fault)
            return self._drawn(what)

    def _met(self, fault: Fault[Kind]) -> Fault[Kind]:
        self.met[fault.kind] += 1
        if fault.left is not None:
            fault.left -= 1
            if not fault.left:
                self._set.remove(fault)
        return Fault(fault.kind, fault.where, fault.left, fault.seconds, fault.until)

    def _drawn(self, what: str) -> Fault[Kind] | None:
        chance = self._chance
        if chance is None or not fnmatchcase(what, chance.where):
            return None
        drawn = chance.random.random()
        for kind, rate in chance.rates.items():
            if drawn < rate:
                self.met[kind] += 1
                return Fault(kind, what, 0, chance.seconds * chance.random.random(), None)
            drawn -= rate
        return None


_FORBIDDEN: Final = (
    "The provided key does not have the required permissions for this endpoint. (The sandbox was told so.)"
)
_RATE_LIMITED: Final = "Request rate limit exceeded. You can learn more about rate limits here https://stripe.com/docs/rate-limits."
_LOCK_TIMEOUT: Final = (
    "This object cannot be accessed right now because another API request or Stripe process is currently accessing it. "
    "If you see this error intermittently, retry the request."
)


def card_error() -> StripeError:
    """The answer to a request whose card is declined before anything is made of it."""
    return StripeError(
        402,
        CARD_ERROR,
        "Your card has insufficient funds.",
        code="card_declined",
        decline_code="insufficient_funds",
    )


def refusal(kind: RequestFault, key: str | None) -> StripeError | None:
    """The error of a fault that keeps a request from being looked at; None for the other kinds. 401 is told by the API keys."""
    if kind is RequestFault.FORBIDDEN:
        return StripeError(403, INVALID_REQUEST, _FORBIDDEN, code="more_permissions_required_for_application")
    if kind is RequestFault.CONFLICT:
        return key_in_use(key or "none")
    if kind is RequestFault.RATE_LIMITED:
        return StripeError(429, INVALID_REQUEST, _RATE_LIMITED, code="rate_limit")
    if kind is RequestFault.LOCK_TIMEOUT:
        return StripeError(429, INVALID_REQUEST, _LOCK_TIMEOUT, code="lock_timeout")
    return None
