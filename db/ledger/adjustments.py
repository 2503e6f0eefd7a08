"""An operator's corrections of a balance."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from db.attempts.reload_rule import Reloads, ask_reload_rule
from db.ledger.post_calls import BalanceChange, lock_accounts, write_accounts
from db.ledger.postings import post
from db.ledger.repricings import ADJUSTMENT_KEY_PREFIX
from db.models import Kind, Transaction
from db.models.errors import UnknownOrgError
from db.postgres.engine import driver_connection

MAX_ADJUSTMENT_CENTS: Final = 10**15
"""Ten trillion dollars: far beyond any correction, and far from where 64-bit sums end."""


class AdjustmentConflictError(Exception):
    """The key was used before for another adjustment. The text says for which."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """An adjustment as the ledger holds it. `change` is None where it had been made before."""

    transaction_id: int
    amount_cents: int
    balance_after_cents: int
    change: BalanceChange | None
    reloads: Reloads
    """What the reload rule said to the new balance."""


def adjust(connection: Connection, org_id: int, *, amount_cents: int, reason: str, key: str) -> Adjusted:
    """Change an org's balance by `amount_cents` (either sign, not 0), once per `key`, in the caller's transaction.

    The same key with the same amount and reason does nothing (docs/reference/commands.md#metering-adjust-org). Raises
    AdjustmentConflictError for the
    same key with others, UnknownOrgError for an org that doesn't exist, ValueError for an amount out of range or a
    re-pricing's key.
    """
    if not 0 < abs(amount_cents) <= MAX_ADJUSTMENT_CENTS:
        raise ValueError(f"cents: must be a whole number from 1 to {MAX_ADJUSTMENT_CENTS}, or its negative.")
    if key.startswith(ADJUSTMENT_KEY_PREFIX):
        raise ValueError(
            f"key: one that begins with {ADJUSTMENT_KEY_PREFIX!r} is a re-pricing's; choose another."
        )
    driver = driver_connection(connection)
    account = lock_accounts(driver, [org_id]).get(org_id)
    if account is None:
        raise UnknownOrgError(org_id)
    made = connection.execute(
        select(
            Transaction.id, Transaction.amount_cents, Transaction.description, Transaction.balance_after_cents
        ).where(
            Transaction.org_id == org_id,
            Transaction.kind == Kind.ADJUSTMENT.value,
            Transaction.source_key == key,
        )
    ).one_or_none()
    if made is not None:
        if (made.amount_cents, made.description) != (amount_cents, reason):
            raise AdjustmentConflictError(
                f"key: {key!r} was used before for org {org_id}, for {made.amount_cents} cents, {made.description!r};"
                " choose another key for another adjustment."
            )
        return Adjusted(made.id, made.amount_cents, made.balance_after_cents, None, Reloads())
    transaction_id = post(
        connection,
        account,
        kind=Kind.ADJUSTMENT,
        amount_cents=amount_cents,
        description=reason,
        source_key=key,
    )
    write_accounts(driver, [account])
    reloads = ask_reload_rule(connection, {org_id: account.now})
    return Adjusted(transaction_id, amount_cents, account.balance_cents, account, reloads)
