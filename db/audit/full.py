"""The audit: every invariant, looked at in one snapshot of the database (docs/reference/commands.md#metering-audit)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, text

from db.audit.invariants import INVARIANTS, Invariant
from db.postgres.clock import read_clock
from db.postgres.engine import transaction


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where an invariant is broken. `detail` is one sentence, with the numbers that disagree."""

    invariant: str
    org_id: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found in one snapshot of the database."""

    taken_at: datetime
    counts: dict[str, int]
    """What was looked at: `orgs`, `transactions`, `debits`, `rejected_events`, and `balances_cents`, all balances together."""
    violations: list[Violation]
    truncated: bool
    """Whether some invariant has more violations than are listed."""

    @property
    def passed(self) -> bool:
        return not self.violations


_COUNTS: Final = text("""
    SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM transactions),
        (SELECT count(*) FROM transactions WHERE kind = 'debit'), (SELECT count(*) FROM rejected_events),
        (SELECT coalesce(sum(balance_cents), 0) FROM accounts)
""")

# Room to sort a million transactions in memory, which halves the time.
_WORK_MEM: Final = text("SET LOCAL work_mem = '64MB'")

# MATERIALIZED keeps order and limit out of the search: expecting many violations where there are none, the planner would walk
# the whole table by an index, row by row, only to have the first ones early.
_FIRST: Final = """
    WITH {shadows} violation (org_id, transaction_id, detail) AS MATERIALIZED ({sql})
    SELECT org_id, detail FROM violation ORDER BY org_id, transaction_id NULLS FIRST, detail LIMIT :limit
"""


def run_audit(engine: Engine, *, limit_per_invariant: int = 100) -> AuditReport:
    """Look for violations of every invariant, in one snapshot of the database, while others go on writing.

    Lists at most `limit_per_invariant` violations of each, in the order of orgs and transactions. Needs to SELECT and no more.
    """
    # Not db.postgres.engine.transaction: the level is to be set before anything is read, and there is nothing to commit.
    with engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    ) as connection:
        taken_at = read_clock(connection)
        prepare_session(connection)
        counts = _count(connection)
        violations: list[Violation] = []
        truncated = False
        for invariant in INVARIANTS.values():
            found = find_violations(connection, invariant, limit=limit_per_invariant + 1)
            truncated = truncated or len(found) > limit_per_invariant
            violations += found[:limit_per_invariant]
    return AuditReport(taken_at, counts, violations, truncated)


def _count(connection: Connection) -> dict[str, int]:
    names = ("orgs", "transactions", "debits", "rejected_events", "balances_cents")
    return {name: int(value) for name, value in zip(names, connection.execute(_COUNTS).one(), strict=True)}


def prepare_session(connection: Connection) -> None:
    """Set what invariants need, for the rest of the transaction: room to sort."""
    connection.execute(_WORK_MEM)


def find_violations(
    connection: Connection, invariant: Invariant, *, limit: int, shadows: str = "", **parameters: object
) -> list[Violation]:
    """The first violations of an invariant, in the order of orgs and transactions.

    `shadows` are common table expressions, each with a comma behind it, that take the place of tables; `parameters` are theirs.
    """
    statement = text(_FIRST.format(shadows=shadows, sql=invariant.sql))
    rows = connection.execute(statement, {"limit": limit, **parameters})
    return [Violation(invariant.name, org_id, detail) for org_id, detail in rows]


def find_violations_apart(
    engine: Engine, *, stop: Callable[[], bool], limit_per_invariant: int
) -> list[Violation] | None:
    """Look at everything as `run_audit` does, but for each invariant in a snapshot of its own; None if told to stop.

    A snapshot keeps Postgres from clearing away old versions of busy rows for as long as it lasts, so none should last long.
    """
    violations: list[Violation] = []
    for invariant in INVARIANTS.values():
        if stop():
            return None
        with transaction(engine) as connection:
            prepare_session(connection)
            violations += find_violations(connection, invariant, limit=limit_per_invariant)
    return violations
