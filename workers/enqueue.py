"""Telling the jobs, through Redis, of attempts that are to be charged: at once, and for certain only by the reconciler."""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

import redis
import structlog
from dramatiq import Message

from workers.broker import MONEY_QUEUE, make_broker
from workers.failures import sentence
from workers.log_context import message_options

AUTO_RELOAD_ACTOR: Final = "auto_reload.charge"
"""Takes an org's id and an attempt's, as text."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class AttemptQueue:
    """Sends messages to the actor that charges. It never fails: what gets lost, the reconciler finds within seconds."""

    def __init__(self, client: redis.Redis) -> None:
        self._broker = make_broker(client)

    def enqueue(self, org_id: int, attempt_id: UUID) -> None:
        """Have an attempt charged now."""
        self.enqueue_all([(org_id, attempt_id)])

    def enqueue_all(self, attempts: Iterable[tuple[int, UUID]]) -> None:
        """Have attempts charged now, each given by its org and its id."""
        for org_id, attempt_id in attempts:
            message: Message[None] = Message(
                queue_name=MONEY_QUEUE,
                actor_name=AUTO_RELOAD_ACTOR,
                args=(org_id, str(attempt_id)),
                kwargs={},
                options=message_options(),
            )
            try:
                self._broker.enqueue(message)
            except redis.RedisError as error:
                # No try for the others: while Redis is away, each may take seconds to fail.
                log.warning("attempts are left to the reconciler", error=sentence(error))
                return
