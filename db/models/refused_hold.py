"""Calls that were refused for want of money."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class RefusedHold(Base):
    """The newest note that a call of an org was refused, once a minute at most (docs/reference/auto-reload.md#refused-calls)."""

    __tablename__ = "refused_holds"
    __table_args__ = (
        CheckConstraint("first_increment_cents >= 0", name="cents"),
        Index("refused_holds_unasked_idx", "org_id", postgresql_where=text("asked_at IS NULL")),
    )

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    noted_at: Mapped[datetime]
    first_increment_cents: Mapped[int]
    """What one first increment of the tier costs: an org whose balance covers it isn't reloaded for this."""
    asked_at: Mapped[datetime | None]
    """When the reload rule was asked because of it."""
    attempt_id: Mapped[UUID | None]
    """The reload that was made while it counted: it makes no other."""
