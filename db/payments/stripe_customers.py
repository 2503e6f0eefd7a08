"""Whose a customer at Stripe is: what decides to which org a payment belongs (docs/reference/money-rules.md#credits)."""

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from db.models import StripeCustomer


class CustomerTakenError(Exception):
    """A customer at Stripe is another org's. It stays so."""


def find_org_of_customer(connection: Connection, customer_id: str) -> int | None:
    """The org whose customer this is, or once was; None for one that isn't known."""
    return connection.scalar(select(StripeCustomer.org_id).where(StripeCustomer.customer_id == customer_id))


def claim_customer(connection: Connection, customer_id: str, org_id: int) -> None:
    """Note for ever whose a customer is; it may be noted already. Raises CustomerTakenError if he is another org's."""
    statement = insert(StripeCustomer).values(customer_id=customer_id, org_id=org_id)
    connection.execute(statement.on_conflict_do_nothing())
    owner = find_org_of_customer(connection, customer_id)
    if owner != org_id:
        raise CustomerTakenError(f"customer {customer_id} is org {owner}'s, and can't become org {org_id}'s")
