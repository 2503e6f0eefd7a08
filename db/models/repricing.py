"""Re-pricings that were applied: their terms, and what each org was billed and would have been."""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    PrimaryKeyConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Repricing(Base):
    """One `metering reprice --apply`, written before the first org is adjusted. Only its end is added later.

    Ids are in the order in which calls count as billed: two whose times overlap are never unfinished together.
    """

    __tablename__ = "repricings"
    __table_args__ = (CheckConstraint("from_at < until_at", name="time"),)

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    """An operator's own: the same key goes on where it ended, and never adjusts an org twice."""
    tier: Mapped[str] = mapped_column(ForeignKey("tiers.name"))
    from_at: Mapped[datetime]
    """Calls that started then or later ..."""
    until_at: Mapped[datetime]
    """... and before then."""
    org_id: Mapped[int | None]
    """NULL for all orgs."""
    rate_microusd_per_minute: Mapped[int]
    """With steps the last one's."""
    steps: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    """Ends in seconds and rates in turn, as prices have them; NULL without steps."""
    increment_first_s: Mapped[int | None]
    """NULL, as the next three: as each call was billed."""
    increment_next_s: Mapped[int | None]
    minimum_s: Mapped[int | None]
    connect_fee_microusd: Mapped[int | None]
    reason: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    finished_at: Mapped[datetime | None]
    """When every org was seen to; NULL until then."""


class RepricedOrg(Base):
    """What a re-pricing has made of one org's calls, in the transaction of its adjustment. Never changed."""

    __tablename__ = "repriced_orgs"
    __table_args__ = (
        PrimaryKeyConstraint("repricing_id", "org_id"),
        Index("repriced_orgs_org_id_idx", "org_id"),
        CheckConstraint("(billed_cents = repriced_cents) = (transaction_id IS NULL)", name="adjusted"),
    )

    repricing_id: Mapped[int] = mapped_column(ForeignKey("repricings.id"))
    org_id: Mapped[int]
    cutoff_transaction_id: Mapped[int]
    """The org's newest transaction then: later calls belong to another re-pricing."""
    calls: Mapped[int]
    billable_seconds: Mapped[int]
    """On the new terms."""
    billed_cents: Mapped[int]
    """What the calls counted as billed before."""
    repriced_cents: Mapped[int]
    """What they count as billed from now on."""
    transaction_id: Mapped[int | None]
    """The adjustment; NULL where there is no difference."""
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
