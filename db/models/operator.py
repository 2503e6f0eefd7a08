"""Operators, and what they have done."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Operator(Base):
    """Who may change something by commands. Only the token's hash is here: whoever reads this table can't use what he finds."""

    __tablename__ = "operators"
    __table_args__ = (
        UniqueConstraint("token_sha256"),
        Index("operators_name_key", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
        CheckConstraint("role IN ('read', 'support', 'money')", name="role"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str]
    """One operator's at a time: once revoked, it may be added again, with a new token."""
    role: Mapped[str]
    token_sha256: Mapped[bytes]
    hint: Mapped[str]
    """The token's last four characters, so that people can tell tokens apart."""
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    revoked_at: Mapped[datetime | None]


class OperatorLogEntry(Base):
    """One thing that an operator has changed, written in the transaction of the change; or that was refused to him.

    A trigger and the grants keep rows as they are. When it was, Postgres's own clock says: nobody may write `at`.
    """

    __tablename__ = "operator_log"
    __table_args__ = (
        Index("operator_log_org_id_idx", "org_id", "id", postgresql_where=text("org_id IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    operator: Mapped[str]
    """His name; the login name while there are no operators, or where there was no token that is known."""
    operator_id: Mapped[int | None]
    login: Mapped[str]
    """The login name on the machine where the command ran, as that machine says it."""
    action: Mapped[str]
    """The command: `key revoke`."""
    refused: Mapped[bool] = mapped_column(server_default=text("false"))
    """He was not allowed to, and nothing was changed."""
    org_id: Mapped[int | None]
    """NULL where it is about no single org."""
    subject: Mapped[str | None]
    """What it was done to, besides the org: a key's id, a tier, a payment."""
    reason: Mapped[str | None]
    """Why, in the operator's words; or why it was refused."""
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What was changed, from what to what."""
