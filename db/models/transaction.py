"""The ledger's rows: only ever added."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ARRAY, JSON, BigInteger, CheckConstraint, Identity, Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Kind(StrEnum):
    """What a transaction is (docs/reference/money-rules.md#kinds-and-signs)."""

    DEBIT = "debit"
    CREDIT = "credit"
    REFUND = "refund"
    ADJUSTMENT = "adjustment"


class Transaction(Base):
    """One change of one org's balance, with the balance after it. A debit also holds everything that went into its charge.

    Every key begins with `org_id`, but for a payment's: it is credited once over all orgs. A trigger and the grants keep rows as
    they are.
    """

    __tablename__ = "transactions"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "id"),
        Index(
            "transactions_call_key",
            "org_id",
            "call_id",
            unique=True,
            postgresql_where=text("call_id IS NOT NULL"),
        ),
        Index(
            "transactions_source_key",
            "org_id",
            "kind",
            "source_key",
            unique=True,
            postgresql_where=text("source_key IS NOT NULL"),
        ),
        Index(
            "transactions_credit_key",
            "source_key",
            unique=True,
            # The second half keeps it from queries for an org's credits, which have an index by org.
            postgresql_where=text("kind = 'credit' AND source_key IS NOT NULL"),
        ),
        # What isn't a call's is rare: listed and counted by kind without walking over the debits.
        Index("transactions_money_idx", "org_id", "kind", "id", postgresql_where=text("kind <> 'debit'")),
        CheckConstraint(
            "CASE kind WHEN 'debit' THEN amount_cents <= 0 AND call_id IS NOT NULL AND source_key IS NULL"
            " WHEN 'credit' THEN amount_cents > 0 AND call_id IS NULL AND source_key IS NOT NULL"
            " WHEN 'refund' THEN amount_cents < 0 AND call_id IS NULL AND source_key IS NOT NULL"
            " WHEN 'adjustment' THEN amount_cents <> 0 AND call_id IS NULL AND source_key IS NOT NULL"
            " ELSE false END",
            name="kind",
        ),
    )

    org_id: Mapped[int]
    id: Mapped[int] = mapped_column(Identity(always=True))
    kind: Mapped[str]
    amount_cents: Mapped[int]
    balance_after_cents: Mapped[int]
    created_at: Mapped[datetime]
    """The time of posting, in whole milliseconds, taken under the org's lock: id order is time order."""
    description: Mapped[str]

    source_key: Mapped[str | None]
    """What makes a transaction that isn't a call's unique in its org and kind: an operator's key, a PaymentIntent's id."""

    call_id: Mapped[int | None]
    stream_id: Mapped[str | None]
    """The stream entry that was billed; the meter's log line of its batch names the range it lies in."""
    tier: Mapped[str | None]
    direction: Mapped[str | None]
    duration_us: Mapped[int | None]
    ended_at: Mapped[datetime | None]
    phone_number_id: Mapped[int | None]
    phone_number_value: Mapped[str | None]
    event_metadata: Mapped[str | None] = mapped_column("metadata", JSON)
    """As text in the form in which it came (`json`, not `jsonb`: numbers and order stay); NULL is the empty object."""

    billable_seconds: Mapped[int | None]
    rate_microusd_per_minute: Mapped[int | None]
    increment_first_s: Mapped[int | None]
    increment_next_s: Mapped[int | None]
    minimum_s: Mapped[int | None]
    connect_fee_microusd: Mapped[int | None]
    steps: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger))
    """Of a price with steps, as `metering.rules.steps.pack_steps` has them; NULL without."""
    used_before_s: Mapped[int | None]
    """With steps: the org's billable seconds of the tier in the month of the call's start, before this call."""
