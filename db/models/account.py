"""An org's account: what the hot path locks, reads and updates."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Account(Base):
    """One row per org. `balance_cents` is always the sum of the org's transactions (docs/reference/money-rules.md#balances).

    No index on what changes with a call, and free space on each page: so updates stay heap-only. No foreign key points here,
    because it would lock the hot row once for each transaction.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint(
            "auto_reload_minimum_cents >= 0 AND auto_reload_amount_cents > 0 AND auto_reload_monthly_limit_cents >= 0"
            " AND (NOT auto_reload_enabled"
            " OR (auto_reload_minimum_cents IS NOT NULL AND auto_reload_amount_cents IS NOT NULL))",
            name="auto_reload",
        ),
        CheckConstraint("(suspended_at IS NULL) = (suspended_version IS NULL)", name="suspended"),
        CheckConstraint("max_concurrent_calls > 0", name="max_concurrent_calls"),
        Index(
            "accounts_stripe_customer_id_idx",
            "stripe_customer_id",
            postgresql_where=text("stripe_customer_id IS NOT NULL"),
        ),
        Index("accounts_auto_reload_idx", "org_id", postgresql_where=text("auto_reload_enabled")),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    org_id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    balance_cents: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int] = mapped_column(server_default="0")
    """Rises by one with every committed change; what follows the balance elsewhere is compared by it."""
    transaction_count: Mapped[int] = mapped_column(server_default="0")
    """How many transactions the org has: so that one of 0 cents can't vanish unseen, and a list needn't count its rows."""
    last_posted_at: Mapped[datetime | None]
    """When the newest transaction was posted: no later one may bear an earlier time, whatever the clocks say."""
    created_at: Mapped[datetime]
    suspended_at: Mapped[datetime | None]
    """Since when an operator has closed the org's gate; NULL while none has."""
    suspended_version: Mapped[int | None]
    """The same as `version` while the org is suspended, NULL otherwise.

    By it who changes the version shows that it knows of the suspension: Postgres refuses a program that doesn't, and would open
    the gate.
    """

    max_concurrent_calls: Mapped[int | None]
    """How many of the org's calls that take holds may run at once; NULL is no limit."""

    auto_reload_enabled: Mapped[bool] = mapped_column(server_default=text("false"))
    auto_reload_minimum_cents: Mapped[int | None]
    """NULL while it was never set, as the amount: both must have been, before reloads can be enabled."""
    auto_reload_amount_cents: Mapped[int | None]
    auto_reload_monthly_limit_cents: Mapped[int | None]
    """NULL is without limit."""
    stripe_customer_id: Mapped[str | None]
    default_payment_method_id: Mapped[str | None]
    default_card_identity: Mapped[str | None]
    """The same for the same card, whatever payment method it is saved as; that of the last default card where there is none now.

    NULL where Stripe tells none.
    """
