"""Signals about auto-reloads: on the channel and in the log of the balance signals, at least once.

See docs/reference/auto-reload.md#signals.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import redis
from sqlalchemy import Engine

from db.attempts.outbox import SignalKey, StoredSignal, delete_signals, read_signals, signals_left
from metering.runtime.crashpoints import CrashPoint, reach
from metering.runtime.lua import lua_script
from metering.runtime.names import SIGNALS_CHANNEL, SIGNALS_LOG
from metering.signals.gates import SIGNALS_LOG_LENGTH

LEFT_AFTER: Final = timedelta(seconds=10)
"""A signal so old was left by a process that ended between its commit and Redis, or found Redis away."""
PAGE: Final = 500
"""How many signals are said at once."""

_SAY: Final = lua_script(__package__, "say_messages.lua")


class ReloadSignals:
    """Says signals to whoever listens. May raise redis.RedisError, and may be repeated."""

    def __init__(self, client: redis.Redis) -> None:
        self._say = client.register_script(_SAY)

    def say(self, messages: Sequence[str]) -> None:
        """Put each message into the log and onto the channel, in their order; all in one call."""
        for first in range(0, len(messages), PAGE):
            page = messages[first : first + PAGE]
            self._say(keys=[SIGNALS_LOG], args=[SIGNALS_CHANNEL, SIGNALS_LOG_LENGTH, *page])


def say_pending(engine: Engine, signals: ReloadSignals, keys: Iterable[SignalKey]) -> int:
    """Say what one's own transactions have written, after their commit, and delete it; give how many were said.

    Some may be gone already: the reconciler was here first. Raises redis.RedisError, or what Postgres raises; then they are left,
    as they are if this process dies, and the reconciler says them, some perhaps a second time.
    """
    return _say_and_delete(engine, signals, read_signals(engine, keys))


def say_left(engine: Engine, signals: ReloadSignals, now: datetime) -> int:
    """Say what others have left behind, and delete it; give how many were said. Raises as `say_pending` does."""
    said = after = 0
    while True:
        left = signals_left(engine, older_than=now - LEFT_AFTER, after=after, limit=PAGE)
        said += _say_and_delete(engine, signals, left)
        if len(left) < PAGE:
            return said
        after = left[-1].id


def _say_and_delete(engine: Engine, signals: ReloadSignals, stored: Sequence[StoredSignal]) -> int:
    # Deleting follows saying, never the other way round.
    signals.say([each.message for each in stored])
    if stored:
        reach(CrashPoint.SIGNALS_AFTER_SAY)
    delete_signals(engine, [each.key for each in stored])
    return len(stored)
