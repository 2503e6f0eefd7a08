"""What orgs have used of tiers whose prices have steps."""

from datetime import date

from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class MonthlyUsage(Base):
    """The billable seconds of an org's calls of one tier that started in one month, in UTC.

    There only where a call was priced by steps; from then on every debit of that org, tier and month adds to it, under the org's
    lock.
    """

    __tablename__ = "monthly_usage"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tier: Mapped[str] = mapped_column(primary_key=True)
    month: Mapped[date] = mapped_column(primary_key=True)
    """Its first day."""
    billable_seconds: Mapped[int]
