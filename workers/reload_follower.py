"""What follows a batch's commit for auto-reloads. What it can't do, or doesn't live to do, the reconciler does."""

from functools import partial

import redis
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db.attempts.reload_rule import Reloads
from metering.payments.metrics import count_reloads
from metering.runtime.crashpoints import CrashPoint, reach
from metering.runtime.redis_connection import on_primary
from metering.signals.reload_signals import ReloadSignals, publish_pending
from workers.enqueue import AttemptQueue
from workers.failures import sentence

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ReloadFollower:
    """Enqueues attempts for the jobs, and says signals."""

    def __init__(self, engine: Engine, client: redis.Redis) -> None:
        self._engine = engine
        self._signals = ReloadSignals(client)
        self._queue = AttemptQueue(client)

    def follow(self, reloads: Reloads) -> None:
        """Do what follows. Never fails for want of Redis or Postgres."""
        count_reloads(reloads)
        self._queue.enqueue_all(reloads.attempts)
        for org_id, attempt_id in reloads.attempts:
            log.info("an auto-reload is due", org_id=org_id, attempt=str(attempt_id))
        if reloads.attempts:
            reach(CrashPoint.RELOADS_AFTER_ENQUEUE)
        try:
            on_primary(partial(publish_pending, self._engine, self._signals, reloads.signals))
        except (redis.RedisError, SQLAlchemyError) as error:
            log.warning(
                "signals are left to the reconciler", signals=len(reloads.signals), error=sentence(error)
            )
