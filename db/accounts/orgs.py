"""Orgs: making their accounts, naming, finding and listing them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from db.models import Account
from db.models.errors import OrgError, UnknownOrgError
from metering.rules.gates import GateState

TRIGRAM_CHARS: Final = 3


@dataclass(frozen=True, slots=True)
class ListedOrg:
    """An org as lists have it."""

    org_id: int
    name: str
    balance_cents: int
    state: GateState
    """What its gate is to be, as Postgres says."""
    auto_reload: str
    """`off`; `on`; what its reloads are paused for, or wait for, by its code."""
    created_at: datetime


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


def rename_org(connection: Connection, org_id: int, name: str) -> str:
    """Give an org another name, in the caller's transaction; give the name before. Raises UnknownOrgError."""
    before = connection.scalar(
        select(Account.name).where(Account.org_id == org_id).with_for_update(key_share=True)
    )
    if before is None:
        raise UnknownOrgError(org_id)
    connection.execute(update(Account).where(Account.org_id == org_id).values(name=name))
    return before


_STATE: Final = """
    CASE WHEN suspended_at IS NOT NULL THEN 'suspended' WHEN balance_cents > 0 THEN 'open' ELSE 'exhausted' END
"""
_RELOAD: Final = """
    CASE WHEN NOT auto_reload_enabled THEN 'off'
    WHEN pause_code IS NOT NULL AND coalesce(paused_until > metering_now(), true) THEN pause_code
    ELSE coalesce(nullif(skip_reason, 'paused'), 'on') END -- that of a pause which has run out, until the rule is asked
"""
_LISTED: Final = f"""
    SELECT org_id, name, balance_cents, {_STATE} AS state, {_RELOAD} AS auto_reload, created_at
    FROM page JOIN accounts USING (org_id) LEFT JOIN reload_states USING (org_id)
"""  # noqa: S608 - of our own text alone

# One walk over the accounts, which are few beside transactions: an index on balances would be written with every call.
_MATCHING: Final = f"""
    FROM accounts
    WHERE (CAST(:state AS text) IS NULL OR {_STATE} = :state) AND (CAST(:below AS bigint) IS NULL OR balance_cents < :below)
"""
_LIST: Final = text(f"""
    WITH page AS MATERIALIZED (SELECT org_id {_MATCHING} ORDER BY org_id LIMIT :limit OFFSET :offset)
    {_LISTED} ORDER BY org_id
""")
_LIST_BY_BALANCE: Final = text(f"""
    WITH page AS MATERIALIZED (SELECT org_id {_MATCHING} ORDER BY balance_cents, org_id LIMIT :limit OFFSET :offset)
    {_LISTED} ORDER BY balance_cents, org_id
""")
_COUNT: Final = text(f"SELECT count(*) {_MATCHING}")


def list_orgs(
    connection: Connection,
    *,
    limit: int,
    offset: int = 0,
    state: GateState | None = None,
    below_cents: int | None = None,
) -> tuple[list[ListedOrg], int]:
    """Orgs in order of id, with the number that there are in all; those in a state, those with a balance below so many cents.

    Those below an amount come in the order of their balances, the lowest first.
    """
    wanted = {"state": None if state is None else state.value, "below": below_cents}
    total = connection.scalar(_COUNT, wanted) or 0
    statement = _LIST if below_cents is None else _LIST_BY_BALANCE
    rows = connection.execute(statement, {**wanted, "limit": limit, "offset": offset})
    return [_listed(row) for row in rows], total


# By the trigrams where there are any: what has them all is compared whole. A text of one or two characters is looked for in all
# names, of a table that holds nothing else. The id comes first, whatever else bears it in its name.
_NAMED: Final = r"""
    FROM org_names, LATERAL (SELECT lower(:wanted) AS folded) AS wanted
    WHERE org_names.folded LIKE '%' || regexp_replace(wanted.folded, '([\\%_])', '\\\1', 'g') || '%'
"""
_BY_TRIGRAMS: Final = "AND trigrams @> trigrams_of(lower(:wanted))"
_FIND: Final = f"""
    WITH page AS MATERIALIZED (
        SELECT org_id, org_id = :org_id AS first {{named}} ORDER BY first DESC, org_id LIMIT :limit OFFSET :offset
    )
    {_LISTED} ORDER BY first DESC, org_id
"""


def find_orgs(
    connection: Connection, wanted: str, *, limit: int, offset: int = 0
) -> tuple[list[ListedOrg], int]:
    """Orgs whose name holds `wanted`, in upper or lower case, with the number that there are in all, in order of id.

    Of digits alone it may be an id as well: that org comes first.
    """
    org_id = int(wanted) if wanted.isascii() and wanted.isdecimal() and int(wanted) < 2**63 else None
    named = _NAMED + (_BY_TRIGRAMS if len(wanted) >= TRIGRAM_CHARS else "")
    if org_id is not None:
        # Two questions, so that each has its index.
        named = (
            f"FROM (SELECT org_id {named} UNION SELECT org_id FROM accounts WHERE org_id = :org_id) AS named"  # noqa: S608 - the same
        )
    values = {"wanted": wanted, "org_id": org_id}
    total = connection.scalar(text(f"SELECT count(*) {named}"), values) or 0
    page = text(_FIND.format(named=named))
    rows = connection.execute(page, {**values, "limit": limit, "offset": offset})
    return [_listed(row) for row in rows], total


def _listed(row: Row[Any]) -> ListedOrg:
    return ListedOrg(
        row.org_id, row.name, row.balance_cents, GateState(row.state), row.auto_reload, row.created_at
    )
