"""An org's account: what the hot path locks, reads and updates."""

from datetime import datetime

from sqlalchemy import Identity
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Account(Base):
    """One row per org. `balance_cents` is always the sum of the org's transactions (CONTRACT.md section 2, rule 7).

    No index on what changes with a call, and free space on each page: so updates stay heap-only. No foreign key points here,
    because it would lock the hot row once for each transaction.
    """

    __tablename__ = "accounts"
    __table_args__ = {"postgresql_with": {"fillfactor": "50"}}  # noqa: RUF012 - SQLAlchemy's own interface

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
