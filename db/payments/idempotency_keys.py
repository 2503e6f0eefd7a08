"""`Idempotency-Key`s: which request each stands for, and the answer that it gets for ever.

See docs/reference/http-api.md#top-ups.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_update

from db.models import IdempotencyKey
from db.postgres.engine import transaction


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
