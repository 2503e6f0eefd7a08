"""`Idempotency-Key`s: which request each stands for, and the answer that it gets for ever.

See docs/reference/http-api.md#top-ups.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid5

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from db.attempts.attempts import Attempt, find_attempt
from db.models import IdempotencyKey
from db.postgres.engine import transaction

_OF_A_KEY: Final = UUID("5b0f3c0e-6d1c-4a52-9f1e-2f3f1d8c7a90")


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A key that was used. `answer` is None while there is none to keep."""

    request_sha256: bytes
    attempt_id: UUID
    answer: str | None


def find_key(connection: Connection, org_id: int, key: str) -> KeptKey | None:
    """A key by its text."""
    row = connection.execute(
        select(IdempotencyKey.request_sha256, IdempotencyKey.attempt_id, IdempotencyKey.answer).where(
            IdempotencyKey.org_id == org_id, IdempotencyKey.key == key
        )
    ).one_or_none()
    return None if row is None else KeptKey(*row)


def attempt_of_key(
    connection: Connection, org_id: int, key: str, *, customer_id: str, request_sha256: bytes
) -> tuple[UUID, Attempt | None]:
    """Which attempt a key without an answer stands for: its id, and its row if there is one; under the org's lock.

    The id follows from the request, so that a database that was restored to an earlier time asks Stripe again under the key of
    the charge that it has forgotten, or knows that charge where the event list has brought it back. An attempt that ended
    without a charge is followed by another one, whose id follows from its own.
    """
    kept = find_key(connection, org_id, key)
    if kept is None:
        attempt_id = uuid5(_OF_A_KEY, json.dumps([customer_id, org_id, key, request_sha256.hex()]))
    else:
        attempt_id = kept.attempt_id
    while (attempt := find_attempt(connection, org_id, attempt_id)) is not None and attempt.uncharged:
        attempt_id = uuid5(attempt_id, "next")
    return attempt_id, attempt


def keep_key(
    connection: Connection, org_id: int, key: str, *, request_sha256: bytes, attempt_id: UUID, at: datetime
) -> None:
    """Write a key, under the org's lock, in the transaction that makes or finds its attempt.

    One that is there gets another attempt: its first one ended without a charge, and its answer was none to keep.
    """
    statement = insert_or_update(IdempotencyKey).values(
        org_id=org_id, key=key, request_sha256=request_sha256, attempt_id=attempt_id, created_at=at
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[IdempotencyKey.org_id, IdempotencyKey.key], set_={"attempt_id": attempt_id}
        )
    )


def keep_answer(engine: Engine, org_id: int, key: str, answer: str) -> str:
    """Keep the first answer to a key; give the one that is kept, which may be somebody else's."""
    with transaction(engine) as connection:
        kept = connection.scalar(
            update(IdempotencyKey)
            .where(
                IdempotencyKey.org_id == org_id, IdempotencyKey.key == key, IdempotencyKey.answer.is_(None)
            )
            .values(answer=answer)
            .returning(IdempotencyKey.answer)
        )
        if kept is None:
            kept = connection.scalar(
                select(IdempotencyKey.answer).where(
                    IdempotencyKey.org_id == org_id, IdempotencyKey.key == key
                )
            )
        return kept or answer
