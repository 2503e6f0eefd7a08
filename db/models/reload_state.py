"""What keeps an org from being reloaded."""

from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, DateTime, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class ReloadState(Base):
    """An org's pause, the declines that led to it, and why its reloads were last skipped.

    See docs/reference/auto-reload.md#pauses.
    """

    __tablename__ = "reload_states"
    __table_args__ = (
        CheckConstraint(
            "(pause_code IS NULL) = (pause_lifts_with IS NULL) AND (pause_code IS NULL) = (paused_at IS NULL)"
            " AND coalesce(pause_lifts_with IN ('time', 'change', 'card'), true)"
            " AND (coalesce(pause_lifts_with, '') = 'time') = (paused_until IS NOT NULL)",
            name="pause",
        ),
        Index("reload_states_ask_at_idx", "ask_at", "org_id", postgresql_where=text("ask_at IS NOT NULL")),
    )

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    declines: Mapped[int] = mapped_column(server_default="0")
    """Soft declines since the last success or change."""
    pause_code: Mapped[str | None]
    """Stripe's code of the decline, or ours (`refunded`, `disputed`); NULL while it isn't paused."""
    pause_lifts_with: Mapped[str | None]
    """`time`, `change` (of the card or a setting), or `card` (a different one)."""
    paused_at: Mapped[datetime | None]
    paused_until: Mapped[datetime | None]
    paused_card: Mapped[str | None]
    """The declined card, by identity if Stripe told its number's fingerprint, else by payment method."""
    skip_reason: Mapped[str | None]
    """Why a reload that the balance asks for is not made; NULL while nothing stands in its way."""
    skip_since: Mapped[datetime | None]
    ask_at: Mapped[datetime | None] = mapped_column(
        server_default=text("'1970-01-01 00:00:00+00'::timestamptz")
    )
    """From when on time alone may change the rule's answer, so that the reconciler is to ask; NULL while only a change can.

    A row of somebody who says nothing of it, as a program of before, is due at once.
    """
    lifts: Mapped[list[datetime]] = mapped_column(ARRAY(DateTime(timezone=True)), server_default=text("'{}'"))
    """When a change of settings has lifted a pause lately: three times in 24 hours at most."""
    declined_cards: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """Cards that were declined since the last success, as `paused_card` names them: to come back to one is no other card."""
