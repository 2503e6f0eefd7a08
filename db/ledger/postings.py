"""Writing a transaction that isn't a call's: a credit, a refund, an adjustment."""

from collections.abc import Mapping

from sqlalchemy import Connection, insert, select

from db.ledger.post_calls import BalanceChange
from db.models import Kind, Transaction


def post(
    connection: Connection,
    account: BalanceChange,
    *,
    kind: Kind,
    amount_cents: int,
    description: str,
    source_key: str,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write one transaction and bring `account`, which is locked, to it; give the transaction's id.

    The account itself is still to be written (`write_accounts`). What must be once is once by `source_key`, in its org and kind:
    the caller has looked for it, under the lock (`is_posted`).
    """
    account.balance_cents += amount_cents
    account.transaction_count += 1
    return connection.execute(
        insert(Transaction)
        .values(
            org_id=account.org_id,
            kind=kind.value,
            amount_cents=amount_cents,
            balance_after_cents=account.balance_cents,
            created_at=account.posted_at,
            description=description,
            source_key=source_key,
            **({"event_metadata": dict(metadata)} if metadata else {}),  # left out: None would be JSON's null
        )
        .returning(Transaction.id)
    ).scalar_one()


def is_posted(connection: Connection, org_id: int, kind: Kind, source_key: str) -> bool:
    """Whether the org has the transaction already. Under the org's lock the answer stays right until the commit."""
    there = select(Transaction.id).where(
        Transaction.org_id == org_id, Transaction.kind == kind.value, Transaction.source_key == source_key
    )
    return connection.execute(there).first() is not None


def is_credited_elsewhere(connection: Connection, org_id: int, payment_intent_id: str) -> bool:
    """Whether a payment is credited to another org: it must not be to this one, too."""
    there = select(Transaction.id).where(
        Transaction.kind == Kind.CREDIT.value,
        Transaction.source_key == payment_intent_id,
        Transaction.org_id != org_id,
    )
    return connection.execute(there).first() is not None
