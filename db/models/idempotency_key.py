"""The keys with which customers repeat a request safely."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import PrimaryKeyConstraint
from sqlalchemy.orm import Mapped

from db.models.base import Base


class IdempotencyKey(Base):
    """A top-up's `Idempotency-Key`, the attempt that it stands for, and the answer that it is given for ever."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (PrimaryKeyConstraint("org_id", "key"),)

    org_id: Mapped[int]
    key: Mapped[str]
    request_sha256: Mapped[bytes]
    """Of the request's meaning: the same key with another is a conflict."""
    attempt_id: Mapped[UUID]
    created_at: Mapped[datetime]
    answer: Mapped[str | None]
    """The outcome that was told, JSON; NULL while there is none to keep."""
