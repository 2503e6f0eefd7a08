"""The continuous audit: what is new every minute, everything now and then, one process at a time over all that run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Final

import structlog
from prometheus_client import Gauge, Histogram
from sqlalchemy import Engine

from db.audit.changes import audit_changes
from db.audit.full import Violation, find_violations_apart
from db.audit.passes import CHANGES, WHOLE, Claim, claim_pass, finish_pass, read_standing, release_pass
from db.postgres.clock import ask_clock
from metering.runtime.clock import age_s
from metering.runtime.crashpoints import CrashPoint, reach
from workers.periodic import PeriodicTask

POLL_EVERY_S: Final = 5.0
"""How often a process asks whether a pass is due, and what others have found."""
CHANGES_EVERY: Final = timedelta(seconds=60)
CHANGES_REST: Final = 4
"""Passes over what is new take at most a fifth of one processor of Postgres's."""
CHANGES_LEASE: Final = timedelta(minutes=15)
WHOLE_EVERY: Final = timedelta(minutes=30)
WHOLE_REST: Final = 50
"""Passes over everything take at most a fiftieth."""
WHOLE_LEASE: Final = timedelta(hours=1)
MARGIN: Final = timedelta(minutes=15)
"""Attempts are known to have changed by times from other machines' clocks, and by transactions that may have taken a while."""
LOGGED_AT_ONCE: Final = 20
"""How many violations a pass logs one by one."""
LIMIT_PER_INVARIANT: Final = 1_000

INVARIANT_VIOLATIONS: Final = Gauge(
    "metering_invariant_violations",
    "Places where an invariant is known to be broken, at most about a thousand; every process tells of all.",
    ["invariant"],
)
AUDIT_AGE_SECONDS: Final = Gauge(
    "metering_audit_age_seconds",
    "Since an audit last came to its end, of what is new (changes) or of everything (whole).",
    ["scope"],
)
AUDIT_SECONDS: Final = Histogram(
    "metering_audit_seconds",
    "How long an audit by this process took.",
    ["scope"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
)

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def audit_tasks(engine: Engine) -> list[PeriodicTask]:
    """What goes round in every jobs process. Each kind of pass has a thread: the long one holds up none of the short ones."""
    job = AuditJob(engine)
    return [
        PeriodicTask("audit of changes", job.audit_changes, POLL_EVERY_S),
        PeriodicTask("audit of everything", job.audit_everything, POLL_EVERY_S),
    ]


class AuditJob:
    """Audits when it is time and nobody else does, and tells Prometheus what is known."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: dict[str, Claim] = {}
        """By kind of pass: what this process may have claimed and has not given up, because Postgres went away."""

    def audit_changes(self, stop: threading.Event) -> None:
        """Look at what is new, if it is time; tell what is known by now, whoever found it."""
        claim = self._claim(CHANGES, every=CHANGES_EVERY, rest=CHANGES_REST, lease=CHANGES_LEASE)
        if claim is not None:
            with self._released_unless_finished(claim):
                changes = audit_changes(
                    self._engine,
                    since=None if claim.seen_to is None else claim.seen_to - MARGIN,
                    stop=stop.is_set,
                    limit_per_invariant=LIMIT_PER_INVARIANT,
                )
                if changes.complete:
                    self._finish(claim, changes.violations, cleared=changes.cleared)
                    log.debug("audited what is new", orgs=changes.orgs, transactions=changes.transactions)
        self._tell()

    def audit_everything(self, stop: threading.Event) -> None:
        """Look at everything, if it is time."""
        claim = self._claim(WHOLE, every=WHOLE_EVERY, rest=WHOLE_REST, lease=WHOLE_LEASE)
        if claim is None:
            return
        with self._released_unless_finished(claim):
            found = find_violations_apart(
                self._engine, stop=stop.is_set, limit_per_invariant=LIMIT_PER_INVARIANT
            )
            if found is not None:
                self._finish(claim, found)
                log.info("audited everything", violations=len(found))

    def _claim(self, name: str, *, every: timedelta, rest: int, lease: timedelta) -> Claim | None:
        """Take a pass upon this process, if it is time. First it gives up what an outage left: its lease would last for long."""
        if name in self._left:
            self._release(self._left[name])
        now = ask_clock(self._engine)
        self._left[name] = Claim(name, now, None)  # until the answer is there it may have been claimed
        claim = claim_pass(self._engine, name, now, every=every, rest=rest, lease=lease)
        if claim is None:
            del self._left[name]
        return claim

    @contextmanager
    def _released_unless_finished(self, claim: Claim) -> Iterator[None]:
        """Whatever ends a pass early, the next one need not wait until its lease is over."""
        try:
            yield
        finally:
            self._release(claim)

    def _release(self, claim: Claim) -> None:
        release_pass(self._engine, claim, ask_clock(self._engine))
        del self._left[claim.name]

    def _finish(self, claim: Claim, violations: list[Violation], *, cleared: set[int] | None = None) -> None:
        now = ask_clock(self._engine)
        reach(CrashPoint.AUDIT_BEFORE_FINISH)
        if not finish_pass(self._engine, claim, now, violations, cleared=cleared or ()):
            log.warning(
                "an audit took longer than its lease, and another process took it over", scope=claim.name
            )
            return
        AUDIT_SECONDS.labels(claim.name).observe((now - claim.started_at).total_seconds())
        for violation in violations[:LOGGED_AT_ONCE]:
            log.error(
                "an invariant is broken",
                invariant=violation.invariant,
                org_id=violation.org_id,
                detail=violation.detail,
            )
        if len(violations) > LOGGED_AT_ONCE:
            log.error("more invariants are broken than are told of here", violations=len(violations))
        if cleared:
            log.warning(
                "orgs in which something was wrong are right again", org_ids=sorted(cleared)[:LOGGED_AT_ONCE]
            )

    def _tell(self) -> None:
        standing = read_standing(self._engine)
        asked_s = time.monotonic()
        for invariant, violations in standing.violations.items():
            INVARIANT_VIOLATIONS.labels(invariant).set(violations)
        for scope, finished_at in standing.finished_at.items():
            if finished_at is not None:
                age = partial(age_s, standing.read_at - finished_at, asked_s)
                AUDIT_AGE_SECONDS.labels(scope).set_function(age)
