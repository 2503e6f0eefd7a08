"""Orgs: making their accounts, and listing them."""

from datetime import datetime

from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert as insert_unless_there
from sqlalchemy.orm import Session

from db.models import Account
from db.models.errors import OrgError


def create_org(connection: Connection, name: str, now: datetime, *, org_id: int | None = None) -> int:
    """Make an org with a balance of 0 cents, in the caller's transaction, and give its id: `org_id`, or the next free one.

    Raises OrgError if `org_id` is taken.
    """
    if org_id is not None:
        if _insert(connection, org_id, name, now):
            return org_id
        raise OrgError(
            f"id: org {org_id} exists already; choose another id, or leave it out to get the next free one."
        )
    while True:  # ends: each turn takes a new number, and only given ids can be in its way
        next_id = connection.execute(text("SELECT nextval('accounts_org_id_seq')")).scalar_one()
        if _insert(connection, next_id, name, now):
            return int(next_id)


def _insert(connection: Connection, org_id: int, name: str, now: datetime) -> bool:
    statement = (
        insert_unless_there(Account)
        .values(org_id=org_id, name=name, created_at=now)
        .on_conflict_do_nothing()
        .returning(Account.org_id)
    )
    return connection.scalar(statement) is not None


def list_orgs(connection: Connection, *, limit: int, offset: int = 0) -> tuple[list[Account], int]:
    """Orgs in order of id, with the number that there are in all."""
    total = connection.scalar(select(func.count()).select_from(Account)) or 0
    rows = Session(connection).scalars(select(Account).order_by(Account.org_id).limit(limit).offset(offset))
    return list(rows), total
