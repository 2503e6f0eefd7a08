"""What a debit costs in Postgres beside time."""

from dataclasses import dataclass

from sqlalchemy import Engine, text

from db.postgres.engine import transaction


@dataclass(frozen=True, slots=True)
class Footprint:
    """Postgres's own counts up to a moment; two of them make a difference."""

    debits: int
    table_bytes: int
    index_bytes: int
    wal_bytes: int
    account_updates: int
    account_hot_updates: int


@dataclass(frozen=True, slots=True)
class DebitCost:
    """Per debit, over many of them."""

    debits: int
    table_bytes: float
    index_bytes: float
    wal_bytes: float
    """Of everything that was going on, page images after a checkpoint included."""
    hot_update_share: float
    """Of the updates of accounts: how many needed no new index entries."""


def footprint(engine: Engine) -> Footprint:
    """Look now. Sessions tell their counts of updates when they end, or after a second of idling."""
    with transaction(engine) as connection:
        row = connection.execute(
            text("""
                SELECT (SELECT coalesce(sum(transaction_count), 0)::bigint FROM accounts) AS debits,
                    pg_table_size('transactions') AS table_bytes,
                    pg_indexes_size('transactions') AS index_bytes,
                    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal_bytes,
                    n_tup_upd, n_tup_hot_upd
                FROM pg_stat_user_tables WHERE relname = 'accounts'
            """)
        ).one()
    return Footprint(*row)


def debit_cost(before: Footprint, after: Footprint) -> DebitCost:
    """What came between two looks, per debit. ValueError if nothing did."""
    debits = after.debits - before.debits
    if not debits:
        raise ValueError("nothing was debited in between")
    updates = after.account_updates - before.account_updates
    return DebitCost(
        debits,
        (after.table_bytes - before.table_bytes) / debits,
        (after.index_bytes - before.index_bytes) / debits,
        (after.wal_bytes - before.wal_bytes) / debits,
        (after.account_hot_updates - before.account_hot_updates) / updates if updates else 0.0,
    )
