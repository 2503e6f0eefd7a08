"""Hearing signals as telephony would, the moment that they are said."""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import redis

from metering.runtime.names import SIGNALS_CHANNEL
from metering.sandbox.telephony.signal_history import (
    Message,
    ReloadMessage,
    parse_message,
    parse_reload_message,
)

WAKE_EVERY_S: Final = 0.2
SUBSCRIBE_LIMIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ReceivedSignal:
    """A signal, and when it was heard, on this process's monotonic clock."""

    heard_s: float
    message: Message


class SignalListener:
    """Listens to the Pub/Sub channel of signals for the time of a with block, and keeps what it hears."""

    def __init__(self, client: redis.Redis) -> None:
        self.error: redis.RedisError | None = None
        """What ended the listening early."""
        self.reloads: list[ReloadMessage] = []
        """The signals about auto-reloads that were heard, about anybody; it only grows."""
        self._heard: list[ReceivedSignal] = []
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)

    def __enter__(self) -> Self:
        """Begin; nothing is missed that is said from now on."""
        self._pubsub.subscribe(SIGNALS_CHANNEL)
        if self._pubsub.get_message(timeout=SUBSCRIBE_LIMIT_S) is None:
            raise redis.TimeoutError("Redis doesn't confirm that the signals are subscribed to")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._pubsub.close()

    def heard(self, org_ids: Collection[int], since: int = 0) -> list[ReceivedSignal]:
        """What was heard about `org_ids`, in order; without the first `since` signals about anybody."""
        return [heard for heard in self._heard[since:] if heard.message.org_id in org_ids]

    @property
    def count(self) -> int:
        """How many signals were heard, about anybody."""
        return len(self._heard)

    def _listen(self) -> None:
        try:
            while not self._stopped.is_set():
                got = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=WAKE_EVERY_S)
                if got is None:
                    continue
                heard_s = time.monotonic()
                if (message := parse_message(got["data"])) is not None:
                    self._heard.append(ReceivedSignal(heard_s, message))
                elif (reload_message := parse_reload_message(got["data"])) is not None:
                    self.reloads.append(reload_message)
        except redis.RedisError as error:
            self.error = error
