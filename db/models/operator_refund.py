"""Refunds that operators ask for."""

from datetime import datetime

from sqlalchemy import CheckConstraint, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class OperatorRefund(Base):
    """One `metering refund`, written before Stripe is asked. Without refund and refusal its outcome isn't known."""

    __tablename__ = "operator_refunds"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "key"),
        CheckConstraint("amount_cents > 0", name="amount"),
        CheckConstraint("refund_id IS NULL OR refusal IS NULL", name="end"),
    )

    org_id: Mapped[int]
    key: Mapped[str]
    payment_intent_id: Mapped[str]
    amount_cents: Mapped[int | None]
    """NULL is all that is left of the payment."""
    reason: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    refund_id: Mapped[str | None]
    """At Stripe."""
    refusal: Mapped[str | None]
    """Why Stripe has not made it, and never will for this key."""
