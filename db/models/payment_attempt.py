"""Attempts: our rows for charges, written before Stripe is asked."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class PaymentAttempt(Base):
    """One charge. What is sent to Stripe is fixed by the row, at every repeat (ARCHITECTURE.md, rule 4).

    The id is random and is the idempotency key: a database that was restored must never give one out again.
    """

    __tablename__ = "payment_attempts"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        Index(
            "payment_attempts_open_reload_key",
            "org_id",
            unique=True,
            postgresql_where=text("kind = 'auto_reload' AND status = 'open'"),
        ),
        Index("payment_attempts_org_id_kind_created_at_idx", "org_id", "kind", "created_at"),
        Index(
            "payment_attempts_payment_intent_id_idx",
            "payment_intent_id",
            postgresql_where=text("payment_intent_id IS NOT NULL"),
        ),
        Index("payment_attempts_look_at_idx", "look_at", postgresql_where=text("status = 'open'")),
        CheckConstraint("kind IN ('top_up', 'auto_reload')", name="kind"),
        CheckConstraint("status IN ('open', 'succeeded', 'failed', 'cancelled')", name="status"),
        CheckConstraint("(status = 'open') = (finished_at IS NULL)", name="finished"),
        CheckConstraint("amount_cents > 0", name="amount"),
    )

    org_id: Mapped[int]
    id: Mapped[UUID]
    kind: Mapped[str]
    amount_cents: Mapped[int]
    customer_id: Mapped[str]
    payment_method_id: Mapped[str]
    return_url: Mapped[str | None]
    """Of a top-up: where a bank that wants the whole page sends the customer back to. NULL in rows older than the column."""
    created_at: Mapped[datetime]
    monthly_limit_cents: Mapped[int | None]
    """Of an auto-reload: the limit in force when it was made; NULL is without limit."""
    month_committed_cents: Mapped[int] = mapped_column(server_default="0")
    """Of an auto-reload: what this month's earlier ones held of the limit then, without this one."""
    recovered: Mapped[bool] = mapped_column(server_default=text("false"))
    """Written from what Stripe holds, because the database had lost it (it was restored to an earlier time)."""

    status: Mapped[str] = mapped_column(server_default="open")
    payment_intent_id: Mapped[str | None]
    intent_created_at: Mapped[datetime | None]
    """Stripe's `created` of it, which says in which UTC month an auto-reload counts. NULL in rows older than the column."""
    intent_status: Mapped[str | None]
    """Stripe's own status of the PaymentIntent, as last heard."""
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    first_sent_at: Mapped[datetime | None]
    last_sent_at: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(server_default="0")
    """How often it was looked at since Stripe last said something: waits grow with it."""
    look_at: Mapped[datetime]
    """When the reconciler is to look at it, as long as it is open."""
    looked_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    in_hand_until: Mapped[datetime | None]
    """Until then somebody asks Stripe about it, or may be about to tell a top-up's client; after a crash it just runs out."""
    answered_at: Mapped[datetime | None]
    """Of a top-up: when a client was told the outcome. Until then an identical request gets it.

    See docs/reference/http-api.md#top-ups.
    """
