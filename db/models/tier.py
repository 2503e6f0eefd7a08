"""Product tiers and their prices: only ever added."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Tier(Base):
    """A product with a price per minute."""

    __tablename__ = "tiers"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


class TierPrice(Base):
    """A tier's price from a time on. The highest id is the version of the whole price book."""

    __tablename__ = "tier_prices"
    __table_args__ = (
        UniqueConstraint("tier", "in_force_from", postgresql_nulls_not_distinct=True),
        CheckConstraint(
            "rate_microusd_per_minute >= 0 AND increment_first_s > 0 AND increment_next_s > 0"
            " AND minimum_s >= 0 AND connect_fee_microusd >= 0",
            name="sane",
        ),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    tier: Mapped[str] = mapped_column(ForeignKey("tiers.name"))
    in_force_from: Mapped[datetime | None]
    """NULL for a tier's first price: in force since ever."""
    rate_microusd_per_minute: Mapped[int]
    increment_first_s: Mapped[int]
    increment_next_s: Mapped[int]
    minimum_s: Mapped[int]
    connect_fee_microusd: Mapped[int]
    created_at: Mapped[datetime]
