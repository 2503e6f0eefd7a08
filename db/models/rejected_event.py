"""Dead letters, events that could not be billed: kept until somebody mends the cause and replays them."""

from datetime import datetime

from sqlalchemy import Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class RejectedEvent(Base):
    """One row per stream entry that could not be billed (docs/reference/call-events.md#rejected-events)."""

    __tablename__ = "rejected_events"
    __table_args__ = (
        # The hash stands in the key because stream ids start again after a FLUSHALL with the clock set back.
        UniqueConstraint("stream_id", "raw_sha256"),
        Index("rejected_events_waiting_idx", "id", postgresql_where=text("replayed_at IS NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    stream_id: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    raw: Mapped[bytes]
    """The bytes that came; of an event that is too large the first 64 KiB."""
    raw_length_bytes: Mapped[int]
    raw_sha256: Mapped[bytes]
    received_at: Mapped[datetime]
    replayed_at: Mapped[datetime | None]
    replayed_as: Mapped[str | None]
    """The stream entry under which it was pushed again."""
