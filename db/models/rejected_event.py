"""Dead letters, events that could not be billed: kept until somebody mends the cause and replays them."""

from datetime import datetime
from typing import Final

from sqlalchemy import Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base

# What the bytes name, JSON or not; NULL where they name none. In the indexes' own words, so that they serve who asks by it.
NAMED_ORG: Final = text("""substring(encode(raw, 'escape') from '"org_id"\\s*:\\s*"?([0-9]{1,19})')""")
NAMED_CALL: Final = text("""substring(encode(raw, 'escape') from '"call_id"\\s*:\\s*"?([0-9]{1,19})')""")


class RejectedEvent(Base):
    """One row per stream entry that could not be billed (docs/reference/call-events.md#rejected-events)."""

    __tablename__ = "rejected_events"
    __table_args__ = (
        # The hash stands in the key because stream ids start again after a FLUSHALL with the clock set back.
        UniqueConstraint("stream_id", "raw_sha256"),
        Index("rejected_events_waiting_idx", "id", postgresql_where=text("replayed_at IS NULL")),
        Index(
            "rejected_events_open_idx",
            "id",
            postgresql_where=text("replayed_at IS NULL AND dismissed_at IS NULL"),
        ),
        Index("rejected_events_named_org_idx", NAMED_ORG, "id"),
        Index("rejected_events_named_call_idx", NAMED_ORG, NAMED_CALL),
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
    dismissed_at: Mapped[datetime | None]
    """When an operator said that it will never be billed."""
    dismissed_reason: Mapped[str | None]
