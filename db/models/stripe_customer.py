"""Whose a customer at Stripe is."""

from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class StripeCustomer(Base):
    """A customer at Stripe and the org that pays with it, for ever: one table of the whole installation.

    Written before the customer is first used. An org can have had several; `accounts.stripe_customer_id` is the present one. A
    trigger there sees to it that none is used that is not here, or is another org's.
    """

    __tablename__ = "stripe_customers"

    customer_id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[int]
