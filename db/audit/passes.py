"""Who audits, how far that has come, and what it has found: shared by every process that audits."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Engine, select, text

from db.audit.full import Violation
from db.audit.invariants import INVARIANTS
from db.models import AuditFinding, AuditPass
from db.postgres.arrays import array
from db.postgres.clock import read_clock
from db.postgres.engine import transaction

CHANGES: Final = "changes"
WHOLE: Final = "whole"

# The longer a pass takes, the longer it rests: what it costs stays a fixed share of a processor, however large the ledger grows.
_CLAIM: Final = text("""
    INSERT INTO audit_passes AS held (name, started_at, lease_until) VALUES (:name, :now, :lease_until)
    ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at, lease_until = excluded.lease_until
    WHERE held.lease_until <= :now AND held.started_at
        <= CAST(:now AS timestamptz) - greatest(CAST(:every AS interval), coalesce(held.took_ms, 0) * :rest * interval '1 ms')
        OR held.started_at > :now -- by a clock that went wrong: nobody need wait until that time comes
    RETURNING seen_to
""")

_FINISH: Final = text("""
    UPDATE audit_passes SET finished_at = :now, took_ms = :took_ms, seen_to = started_at, lease_until = :now
    WHERE name = :name AND started_at = :started_at
""")

_RELEASE: Final = text(
    "UPDATE audit_passes SET lease_until = :now WHERE name = :name AND started_at = :started_at"
)

_SUSPECT: Final = text("""
    INSERT INTO audit_suspects (org_id, since) SELECT org_id, :now FROM unnest(CAST(:org_ids AS bigint[])) AS org_id
    ON CONFLICT (org_id) DO NOTHING
""")
_TRUST: Final = text("DELETE FROM audit_suspects WHERE org_id = ANY(CAST(:org_ids AS bigint[]))")

_FIND: Final = text("""
    INSERT INTO audit_findings AS known (invariant, violations, found_at) VALUES (:invariant, :violations, :now)
    ON CONFLICT (invariant) DO UPDATE SET found_at = excluded.found_at,
        violations = CASE WHEN :only_more THEN greatest(known.violations, excluded.violations) ELSE excluded.violations END
""")


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to make a pass, for as long as its lease. `seen_to`: when the one before it, that came to its end, had begun."""

    name: str
    started_at: datetime
    seen_to: datetime | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known: violations of each invariant, 0 where none was ever found, and when each pass last came to its end."""

    violations: dict[str, int]
    finished_at: dict[str, datetime | None]
    read_at: datetime
    """What time it was when this was read."""


def claim_pass(
    engine: Engine, name: str, now: datetime, *, every: timedelta, rest: int, lease: timedelta
) -> Claim | None:
    """Take a pass upon oneself, unless somebody has it in hand, or it isn't time.

    It is time `every` after the last one began, or `rest` times as long as that took, if that is longer.
    """
    with transaction(engine) as connection:
        row = connection.execute(
            _CLAIM, {"name": name, "now": now, "lease_until": now + lease, "every": every, "rest": rest}
        ).one_or_none()
    return None if row is None else Claim(name, now, row.seen_to)


def release_pass(engine: Engine, claim: Claim, now: datetime) -> None:
    """Give up a pass that didn't come to its end: the next one need not wait for its lease."""
    with transaction(engine) as connection:
        connection.execute(_RELEASE, {"name": claim.name, "started_at": claim.started_at, "now": now})


def finish_pass(
    engine: Engine,
    claim: Claim,
    now: datetime,
    violations: Iterable[Violation],
    *,
    cleared: Iterable[int] = (),
) -> bool:
    """Note that a pass came to its end, and what it has found. False if it was taken over meanwhile: then nothing is noted.

    Orgs with something wrong are looked at whole from now on, until a pass over the changes finds nothing wrong with them:
    `cleared`. Only such a pass takes findings back: one over everything takes long, and what it saw may have been mended since.
    """
    found = list(violations)
    orgs = array({each.org_id for each in found if each.org_id is not None})
    counts = Counter(each.invariant for each in found)
    only_more = claim.name == WHOLE
    took_ms = round((now - claim.started_at) / timedelta(milliseconds=1))
    finish = {"name": claim.name, "started_at": claim.started_at, "now": now, "took_ms": took_ms}
    with transaction(engine) as connection:
        if not connection.execute(_FINISH, finish).rowcount:
            return False
        connection.execute(_TRUST, {"org_ids": array(cleared)})
        connection.execute(_SUSPECT, {"org_ids": orgs, "now": now})
        connection.execute(
            _FIND,
            [
                {"invariant": name, "violations": counts[name], "now": now, "only_more": only_more}
                for name in sorted(INVARIANTS)
            ],
        )
    return True


def read_standing(engine: Engine) -> Standing:
    """What is known by now, whoever found it."""
    with transaction(engine) as connection:
        known = dict(connection.execute(select(AuditFinding.invariant, AuditFinding.violations)).all())
        passes = dict(connection.execute(select(AuditPass.name, AuditPass.finished_at)).all())
        now = read_clock(connection)
    return Standing({name: known.get(name, 0) for name in INVARIANTS}, passes, now)
