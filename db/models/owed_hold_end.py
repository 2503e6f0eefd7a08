"""Calls whose holds are still to be ended."""

from datetime import datetime

from sqlalchemy import PrimaryKeyConstraint
from sqlalchemy.orm import Mapped

from db.models.base import Base


class OwedHoldEnd(Base):
    """A call whose event was seen while Redis couldn't end its hold. Deleted once the jobs have ended it."""

    __tablename__ = "owed_hold_ends"
    __table_args__ = (PrimaryKeyConstraint("org_id", "call_id"),)

    org_id: Mapped[int]
    call_id: Mapped[int]
    noted_at: Mapped[datetime]
