"""Which calls are billed."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, text

from db.postgres.arrays import array

# By transactions_call_key, one probe for each call: see FIND_BILLED_CALLS.
_BILLED: Final = text("""
    SELECT billed.org_id, billed.call_id
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:call_ids AS bigint[])) AS wanted (org_id, call_id)
    CROSS JOIN LATERAL (
        SELECT org_id, call_id FROM transactions
        WHERE transactions.org_id = wanted.org_id AND transactions.call_id = wanted.call_id
        LIMIT 1
    ) AS billed
""")


def find_billed(connection: Connection, calls: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Those of `calls`, ids by their orgs, for which there is a debit. A call of 0 seconds has none."""
    pairs = [(org_id, call_id) for org_id, call_ids in calls.items() for call_id in call_ids]
    wanted = {
        "org_ids": array([org_id for org_id, _ in pairs]),
        "call_ids": array([call_id for _, call_id in pairs]),
    }
    found: dict[int, list[int]] = {}
    for org_id, call_id in connection.execute(_BILLED, wanted):
        found.setdefault(org_id, []).append(call_id)
    return found
