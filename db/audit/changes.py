"""The audit of what is new, cheap enough for every minute; `db/audit/windows.py` says why it is enough."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, select, text

from db.audit import windows
from db.audit.full import Violation, find_violations, prepare_session
from db.audit.invariants import INVARIANTS
from db.models import AuditSuspect
from db.postgres.arrays import array
from db.postgres.engine import transaction
from metering.runtime.crashpoints import CrashPoint, reach

ORGS_AT_ONCE: Final = 5_000
TRANSACTIONS_AT_ONCE: Final = 500_000
"""About how many new transactions one snapshot looks at: those of a single org are never parted."""

_BEFORE_ALL: Final = -(2**63)


@dataclass(slots=True)
class Changes:
    """What was looked at, and found."""

    orgs: int = 0
    """Accounts that had changed, or had something wrong."""
    transactions: int = 0
    violations: list[Violation] = field(default_factory=list)
    """In orgs with something wrong, all that is wrong with them, however old."""
    cleared: set[int] = field(default_factory=set)
    """Orgs in which something was wrong before, and nothing is now."""
    complete: bool = False
    """Whether everything new was looked at: it was not told to stop."""

    def add(self, found: Iterable[Violation]) -> None:
        """Take in what was found; the same may be found in two ways."""
        self.violations += [each for each in dict.fromkeys(found) if each not in self.violations]


def audit_changes(
    engine: Engine,
    *,
    since: datetime | None,
    stop: Callable[[], bool] = lambda: False,
    limit_per_invariant: int = 100,
) -> Changes:
    """Look for violations of every invariant in what has changed since the last time, and note how far all is right.

    `since` is when attempts were last looked at, or somewhat before; None looks at all of them. Each page of orgs is looked at in
    a snapshot of its own. Lists at most `limit_per_invariant` violations of each invariant and page.
    """
    changes = Changes()
    snapshots = engine.execution_options(isolation_level="REPEATABLE READ")
    look = _ChangeAudit(limit_per_invariant)
    with transaction(engine) as connection:
        suspects = set(connection.scalars(select(AuditSuspect.org_id)))
    for page in _pages(snapshots):
        if stop():
            return changes
        with transaction(snapshots) as connection:
            changes.transactions += look.at_window(connection, page, changes)
        reach(CrashPoint.AUDIT_AFTER_PAGE)
        changes.orgs += len(page)
    with transaction(snapshots) as connection:
        touched = text(windows.ORGS_WITH_TOUCHED_ATTEMPTS)
        orgs = list(connection.scalars(touched, {"since": since}))
    for first in range(0, len(orgs), ORGS_AT_ONCE):
        if stop():
            return changes
        with transaction(snapshots) as connection:
            look.at_payments(connection, orgs[first : first + ORGS_AT_ONCE], changes)
    with transaction(snapshots) as connection:
        prepare_session(connection)
        changes.add(look.find(connection, windows.ORPHANS, windows.SHADOWS_OF_ORPHANS))
        changes.add(look.find(connection, windows.OPEN_ATTEMPTS | windows.EVENTS, ""))
    # Only those that this pass has looked at from its start: others may be found by another pass meanwhile.
    if not look.cut_off:
        changes.cleared = suspects - {each.org_id for each in changes.violations}
    changes.complete = True
    return changes


def _pages(snapshots: Engine) -> Iterator[list[int]]:
    """The orgs to look at, in order, each page with a bounded number of new transactions."""
    after = _BEFORE_ALL
    while True:
        with transaction(snapshots) as connection:
            rows = connection.execute(
                text(windows.ORGS_TO_AUDIT), {"after": after, "limit": ORGS_AT_ONCE}
            ).all()
        page: list[int] = []
        transactions = 0
        for org_id, new_count in rows:
            if page and transactions + max(new_count, 0) > TRANSACTIONS_AT_ONCE:
                yield page
                page, transactions = [], 0
            page.append(org_id)
            transactions += max(new_count, 0)
        if page:
            yield page
        if len(rows) < ORGS_AT_ONCE:
            return
        after = rows[-1].org_id


@dataclass(slots=True)
class _ChangeAudit:
    limit: int
    cut_off: bool = False
    """Whether there may be more violations than were listed: then it isn't known in which orgs all is right."""

    def at_window(self, connection: Connection, org_ids: Sequence[int], changes: Changes) -> int:
        """Look at what is new in some orgs, vouch for those in which all is right; give how many transactions are new."""
        prepare_session(connection)
        for statement in windows.MAKE_WINDOW:
            connection.execute(
                text(statement), {"org_ids": array(org_ids)} if ":org_ids" in statement else {}
            )
        found = [
            *self._steps(connection),
            *self.find(connection, windows.ROWS, windows.SHADOWS_OF_ROWS),
            *self.find(connection, windows.KEYS, windows.SHADOWS_OF_KEYS),
        ]
        paid = list(connection.scalars(text(windows.ORGS_WITH_FRESH_MONEY)))
        if paid:
            found += self._payments(connection, paid)
        changes.add(found)
        broken = {each.org_id for each in found if each.org_id is not None}
        if not self.cut_off:
            connection.execute(text(windows.VOUCH), {"broken": array(broken)})
        return int(connection.scalar(text("SELECT count(*) FROM audit_fresh")) or 0)

    def at_payments(self, connection: Connection, org_ids: Sequence[int], changes: Changes) -> None:
        """Look at all payments of some orgs."""
        prepare_session(connection)
        changes.add(self._payments(connection, org_ids))

    def _payments(self, connection: Connection, org_ids: Sequence[int]) -> list[Violation]:
        ids = array(org_ids)
        return [
            *self.find(connection, windows.PAYMENTS, windows.SHADOWS_OF_PAYMENTS, org_ids=ids),
            *self.find(connection, windows.OWNERSHIP, windows.SHADOWS_OF_OWNERSHIP, org_ids=ids),
        ]

    def find(
        self, connection: Connection, names: Collection[str], shadows: str, **parameters: object
    ) -> list[Violation]:
        """Violations of some invariants."""
        found: list[Violation] = []
        for invariant in INVARIANTS.values():
            if invariant.name in names:
                listed = find_violations(
                    connection, invariant, limit=self.limit, shadows=shadows, **parameters
                )
                self.cut_off = self.cut_off or len(listed) >= self.limit
                found += listed
        return found

    def _steps(self, connection: Connection) -> list[Violation]:
        """Whether each step follows from the one before. What doesn't is told from the org's whole history."""
        found = self.find(connection, windows.STEPS, windows.SHADOWS_OF_STEPS)
        broken = {each.org_id for each in found if each.org_id is not None}
        if not broken:
            return found
        told = self.find(connection, windows.STEPS, windows.SHADOWS_OF_ORGS, org_ids=array(broken))
        named = {each.org_id for each in told}
        return told + [each for each in found if each.org_id not in named]
