"""Customers' API keys."""

from datetime import datetime

from sqlalchemy import Identity, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class ApiKey(Base):
    """A key that names its org. Only its hash is here: whoever reads this table can't use what he finds."""

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("key_sha256"),
        Index("api_keys_org_id_idx", "org_id"),
        Index("api_keys_hint_idx", "hint"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    org_id: Mapped[int]
    key_sha256: Mapped[bytes]
    hint: Mapped[str]
    """Its last four characters, so that people can tell keys apart."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    name: Mapped[str | None]
    """What people call it."""
    expires_at: Mapped[datetime | None]
    """From then on it is as if it were revoked, by Postgres's clock; NULL is never."""
    last_used_at: Mapped[datetime | None]
    """Noted once an hour at most, some time after the use; NULL where no use was noted."""
