"""What Stripe has told us, and how far we have read."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class StripeEvent(Base):
    """An event of Stripe's, written in the transaction of its effect: the same one again does nothing."""

    __tablename__ = "stripe_events"

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    created_at: Mapped[datetime]
    """By Stripe's clock."""
    received_at: Mapped[datetime]
    outcome: Mapped[str]
    """What became of it, or why it was not booked."""


class SetAsideEvent(Base):
    """An event that could not be handled, kept until it is. Stripe lists it for 30 days only."""

    __tablename__ = "set_aside_events"
    __table_args__ = (Index("set_aside_events_retry_at_idx", "retry_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    created_at: Mapped[datetime]
    """By Stripe's clock."""
    livemode: Mapped[bool]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    """As Stripe gave it, without client secrets."""
    set_aside_at: Mapped[datetime]
    tries: Mapped[int] = mapped_column(server_default=text("1"))
    retry_at: Mapped[datetime]
    error: Mapped[str]
    """Why it could not be handled, the last time."""


class StripeCursor(Base):
    """How far Stripe's list of events has been read."""

    __tablename__ = "stripe_cursors"

    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[datetime]
    """Every event up to then, by Stripe's clock, has been seen to."""
    looked_at: Mapped[datetime]
    """When a reconciliation last set out to read: others need not do so at once."""
    read_at: Mapped[datetime | None]
    """When the list was last read to its end."""
