"""What each org used of each tier, day by day: derived from the ledger."""

from datetime import date

from sqlalchemy import Date, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class DailyUsage(Base):
    """An org's billed calls of a tier that started on a UTC day, as far as its cursor has come."""

    __tablename__ = "daily_usage"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "tier", "day"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    org_id: Mapped[int]
    tier: Mapped[str]
    day: Mapped[date] = mapped_column(Date)
    calls: Mapped[int]
    billable_seconds: Mapped[int]
    billed_cents: Mapped[int]
    """What the debits come to, 0 or more; adjustments don't count."""


class DailyUsageCursor(Base):
    """How far into an org's ledger its daily usage has come. No row: not begun."""

    __tablename__ = "daily_usage_cursors"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    transaction_id: Mapped[int]
    """All up to this one are counted."""
    transaction_count: Mapped[int]
    """How many of the org's transactions those are."""
