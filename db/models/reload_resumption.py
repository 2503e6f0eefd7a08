"""Pauses of reloads that were lifted by hand."""

from datetime import datetime

from sqlalchemy import Identity, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class ReloadResumption(Base):
    """One pause that somebody has lifted with `metering reload resume`. Never changed."""

    __tablename__ = "reload_resumptions"
    __table_args__ = (PrimaryKeyConstraint("org_id", "id"),)

    org_id: Mapped[int]
    id: Mapped[int] = mapped_column(Identity(always=True))
    code: Mapped[str]
    """The pause's."""
    resumed_at: Mapped[datetime]
    resumed_by: Mapped[str]
    """The user whose command it was."""
    reason: Mapped[str]
