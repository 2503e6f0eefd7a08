"""Product tiers, and the prices that they and single orgs have from a time on: only ever added, or cancelled in time."""

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Tier(Base):
    """A product with a price per minute."""

    __tablename__ = "tiers"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


class TierPrice(Base):
    """A tier's price from a time on; with `org_id` that org's own, or its end: then the terms are NULL, all of them.

    A trigger and the grants keep rows as they are, but that one may be cancelled until 60 s before it is in force.
    """

    __tablename__ = "prices"
    __table_args__ = (
        Index(
            "prices_in_force_key",
            "tier",
            "org_id",
            "in_force_from",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("cancelled_at IS NULL"),
        ),
        CheckConstraint(
            "rate_microusd_per_minute >= 0 AND increment_first_s > 0 AND increment_next_s > 0"
            " AND minimum_s >= 0 AND connect_fee_microusd >= 0",
            name="sane",
        ),
        CheckConstraint(
            "num_nulls(rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd) = 0"
            " OR org_id IS NOT NULL AND"
            " num_nulls(rate_microusd_per_minute, increment_first_s, increment_next_s, minimum_s, connect_fee_microusd) = 5",
            name="end",
        ),
        CheckConstraint(
            "cardinality(steps) >= 3 AND cardinality(steps) % 2 = 1 AND array_ndims(steps) = 1"
            " AND steps[cardinality(steps)] = rate_microusd_per_minute",
            name="steps",
        ),
        CheckConstraint("org_id IS NULL OR in_force_from IS NOT NULL", name="org"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    tier: Mapped[str] = mapped_column(ForeignKey("tiers.name"))
    in_force_from: Mapped[datetime | None]
    """NULL for a tier's first price: in force since ever."""
    rate_microusd_per_minute: Mapped[int | None]
    increment_first_s: Mapped[int | None]
    increment_next_s: Mapped[int | None]
    minimum_s: Mapped[int | None]
    connect_fee_microusd: Mapped[int | None]
    created_at: Mapped[datetime]
    org_id: Mapped[int | None]
    cancelled_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default=text("0"), index=True)
    """The price book's, when this row was last changed; a trigger writes it."""
    steps: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    """As `metering.rules.steps.pack_steps` has them; NULL without."""


class PriceBookVersion(Base):
    """The version of the whole price book, in one row; each change of a price raises it (a trigger)."""

    __tablename__ = "price_book"
    __table_args__ = (CheckConstraint("one", name="one"),)

    one: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    version: Mapped[int]
