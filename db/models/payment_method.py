"""Cards that customers have saved."""

from datetime import datetime

from sqlalchemy import Index, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped

from db.models.base import Base


class PaymentMethod(Base):
    """A payment method of an org's customer at Stripe that is ready to be charged, until it is detached."""

    __tablename__ = "payment_methods"
    __table_args__ = (
        PrimaryKeyConstraint("org_id", "payment_method_id"),
        Index("payment_methods_payment_method_id_idx", "payment_method_id"),
    )

    org_id: Mapped[int]
    payment_method_id: Mapped[str]
    ready_at: Mapped[datetime]
    detached_at: Mapped[datetime | None]
