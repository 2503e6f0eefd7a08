"""How far the continuous audit has come, and what it has found."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class AuditPass(Base):
    """A kind of pass over the ledger, and the one process that makes it."""

    __tablename__ = "audit_passes"

    name: Mapped[str] = mapped_column(primary_key=True)
    """`changes`, or `whole`."""
    started_at: Mapped[datetime]
    lease_until: Mapped[datetime]
    """Until then nobody else begins one; whoever dies meanwhile just lets it run out."""
    finished_at: Mapped[datetime | None]
    """Of the last pass that came to its end."""
    took_ms: Mapped[int | None]
    seen_to: Mapped[datetime | None]
    """When the last pass that came to its end had begun: what was changed before has been looked at."""


class AuditedAccount(Base):
    """An account and its history as they were when nothing was wrong with them: where the next look begins.

    Written by audits only. An org with something wrong has none, so that its whole history is looked at until that is mended.
    """

    __tablename__ = "audited_accounts"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    transaction_id: Mapped[int | None]
    """The last one that was looked at; NULL where there was none."""
    balance_cents: Mapped[int]
    version: Mapped[int]
    transaction_count: Mapped[int]
    last_posted_at: Mapped[datetime | None]


class AuditSuspect(Base):
    """An org with something wrong: looked at whole, in each pass, until nothing is."""

    __tablename__ = "audit_suspects"

    org_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    since: Mapped[datetime]


class AuditFinding(Base):
    """How often an invariant is broken, as far as is known."""

    __tablename__ = "audit_findings"

    invariant: Mapped[str] = mapped_column(primary_key=True)
    violations: Mapped[int]
    found_at: Mapped[datetime]
