"""Calls whose events were seen, and whose holds Redis couldn't end then: the jobs end them, and delete these."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, text

from db.postgres.arrays import array

_KEEP: Final = text("""
    INSERT INTO owed_hold_ends (org_id, call_id, noted_at)
    SELECT org_id, call_id, metering_now()
    FROM unnest(CAST(:org_ids AS bigint[]), CAST(:call_ids AS bigint[])) AS owed (org_id, call_id)
    ORDER BY org_id, call_id
    ON CONFLICT (org_id, call_id) DO NOTHING
""")
_LIST: Final = text("SELECT org_id, call_id FROM owed_hold_ends ORDER BY org_id, call_id LIMIT :limit")
_DELETE: Final = text("""
    DELETE FROM owed_hold_ends USING unnest(CAST(:org_ids AS bigint[]), CAST(:call_ids AS bigint[])) AS done (org_id, call_id)
    WHERE owed_hold_ends.org_id = done.org_id AND owed_hold_ends.call_id = done.call_id
""")


def keep_owed_ends(connection: Connection, calls: Mapping[int, Sequence[int]]) -> None:
    """Keep calls of each org; one that is kept already stays."""
    connection.execute(_KEEP, _columns(calls))


def list_owed_ends(connection: Connection, limit: int) -> dict[int, list[int]]:
    """Calls by their orgs, at most `limit` in all."""
    found: dict[int, list[int]] = {}
    for org_id, call_id in connection.execute(_LIST, {"limit": limit}):
        found.setdefault(org_id, []).append(call_id)
    return found


def delete_owed_ends(connection: Connection, calls: Mapping[int, Sequence[int]]) -> None:
    """Forget calls whose holds have ended."""
    connection.execute(_DELETE, _columns(calls))


def _columns(calls: Mapping[int, Sequence[int]]) -> dict[str, str]:
    pairs = [(org_id, call_id) for org_id, call_ids in calls.items() for call_id in call_ids]
    return {
        "org_ids": array(org_id for org_id, _ in pairs),
        "call_ids": array(call_id for _, call_id in pairs),
    }
