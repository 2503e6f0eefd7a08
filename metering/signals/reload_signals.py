"""Publishing the outbox, signals about auto-reloads: on the channel and in the log of the balance signals, at least once.

See docs/reference/auto-reload.md#signals.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

import redis
from sqlalchemy import Engine

from db.attempts.outbox import SignalKey, StoredSignal, delete_signals, overdue_signals, read_signals
from metering.runtime.crashpoints import CrashPoint, reach
from metering.runtime.lua import lua_script
from metering.runtime.names import SIGNALS_CHANNEL, SIGNALS_LOG
from metering.signals.gates import SIGNALS_LOG_LENGTH

OVERDUE_AFTER: Final = timedelta(seconds=10)
"""A signal so old was left by a process that ended between its commit and Redis, or found Redis away."""
PAGE: Final = 500
"""How many signals are published at once."""

_PUBLISH: Final = lua_script(__package__, "publish_messages.lua")


class ReloadSignals:
    """Publishes signals to whoever listens. May raise redis.RedisError, and may be repeated."""

    def __init__(self, client: redis.Redis) -> None:
        self._publish = client.register_script(_PUBLISH)

    def publish(self, messages: Sequence[str]) -> None:
        """Put each message into the log and onto the channel, in their order; all in one call."""
        for first in range(0, len(messages), PAGE):
            page = messages[first : first + PAGE]
            self._publish(keys=[SIGNALS_LOG], args=[SIGNALS_CHANNEL, SIGNALS_LOG_LENGTH, *page])


def publish_pending(engine: Engine, signals: ReloadSignals, keys: Iterable[SignalKey]) -> int:
    """Publish what one's own transactions have written, after their commit, and delete it; give how many were published.

    Some may be gone already: the reconciler was here first. Raises redis.RedisError, or what Postgres raises; then they are left,
    as they are if this process dies, and the reconciler says them, some perhaps a second time.
    """
    return _publish_and_delete(engine, signals, read_signals(engine, keys))


def publish_overdue(engine: Engine, signals: ReloadSignals) -> int:
    """Publish what others have left behind, and delete it; give how many were published. Raises as `publish_pending` does."""
    said = after = 0
    while True:
        left = overdue_signals(engine, age=OVERDUE_AFTER, after=after, limit=PAGE)
        said += _publish_and_delete(engine, signals, left)
        if len(left) < PAGE:
            return said
        after = left[-1].id


def _publish_and_delete(engine: Engine, signals: ReloadSignals, stored: Sequence[StoredSignal]) -> int:
    # Deleting follows publishing, never the other way round.
    signals.publish([each.message for each in stored])
    if stored:
        reach(CrashPoint.SIGNALS_AFTER_PUBLISH)
    delete_signals(engine, [each.key for each in stored])
    return len(stored)
