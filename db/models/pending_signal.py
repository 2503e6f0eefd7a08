"""Signals that are still to be said."""

from datetime import datetime

from sqlalchemy import Identity, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class PendingSignal(Base):
    """A signal about an auto-reload, written in the transaction of its cause and deleted once it is said."""

    __tablename__ = "pending_signals"
    __table_args__ = (PrimaryKeyConstraint("org_id", "id"),)

    org_id: Mapped[int]
    id: Mapped[int] = mapped_column(Identity(always=True))
    type: Mapped[str]
    body: Mapped[str]
    """The message, JSON."""
    created_at: Mapped[datetime]
