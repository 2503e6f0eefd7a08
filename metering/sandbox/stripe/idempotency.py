"""Idempotency keys, as Stripe keeps them: the first answer of a key is its answer for 24 hours."""

import hashlib
import threading
from typing import Final

import msgspec

from metering.sandbox.stripe.disk import KeptAnswer
from metering.sandbox.stripe.errors import IDEMPOTENCY_ERROR, INVALID_REQUEST, StripeError
from metering.sandbox.stripe.store import KEY_LIFE_S, Store
from metering.sandbox.stripe.values import Json

MAX_LENGTH: Final = 255


def fingerprint(path: str, params: Json) -> bytes:
    """What a request is about: its endpoint and its parameters, in whatever order they came."""
    canonical = msgspec.json.encode([path, params], order="deterministic")
    return hashlib.sha256(canonical).digest()


def key_in_use(key: str) -> StripeError:
    """The answer to a request whose key another one is using at the moment."""
    return StripeError(
        409,
        INVALID_REQUEST,
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and "
        f"the other request is still going through): {key}. Please try again later.",
        code="idempotency_key_in_use",
    )


class Keys:
    """The keys in use, and what those that were used have been answered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def begin(self, key: str, asked: bytes, kept_as: str) -> KeptAnswer | None:
        """The answer that `key` keeps, or None: then it is the caller's until `end`. `asked` is the request's fingerprint.

        It is kept as `kept_as`, which tells apart the same key of several accounts.

        Raises StripeError: 400 `idempotency_error` for another request than the key's first, 409 while that is running.
        """
        if len(key) > MAX_LENGTH:
            raise StripeError(
                400, INVALID_REQUEST, f"Idempotency keys can only be up to {MAX_LENGTH} characters."
            )
        with self._lock:
            running = self._running.get(kept_as)
            kept = self._store.answers.get(kept_as)
            if kept is not None and self._store.now() - kept.created >= KEY_LIFE_S:
                kept = None
            first = running if running is not None else kept.fingerprint if kept is not None else asked
            if first != asked:
                raise StripeError(
                    400,
                    IDEMPOTENCY_ERROR,
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using "
                    f"a key other than '{key}' if you meant to execute a different request.",
                )
            if running is not None:
                raise key_in_use(key)
            if kept is None:
                self._running[kept_as] = asked
            return kept

    def end(self, kept_as: str) -> None:
        """Let go of a key: its answer is kept by now, or nothing was executed."""
        with self._lock:
            self._running.pop(kept_as, None)
