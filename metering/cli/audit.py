# ruff: noqa: PLC0415 - imported when the command runs, so that --help is quick
"""`metering audit`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from metering.cli.errors import CommandError
from metering.cli.output import JsonOption, add_row, counted, say, show_json, show_table, table
from metering.rules.times import format_time

if TYPE_CHECKING:
    from db.audit import AuditReport


def audit(as_json: JsonOption = False) -> None:
    """Prove from one snapshot of the database that every cent is where it belongs.

    Exit status 0 means that every invariant holds; 1 names each violation.
    """
    from db.audit import run_audit
    from metering.cli.connections import open_database

    with open_database(command="audit") as engine:
        report = run_audit(engine)
    if as_json:
        show_audit_json(report)
    else:
        show_audit(report)
    require_passed(report)


def require_passed(report: "AuditReport") -> None:
    """Raise CommandError, naming the broken invariants, unless the audit passed."""
    if not report.passed:
        broken = ", ".join(sorted({violation.invariant for violation in report.violations}))
        raise CommandError(f"The audit failed: {_found(report)}, of {broken}.")


def _found(report: "AuditReport") -> str:
    return ("at least " if report.truncated else "") + counted(len(report.violations), "violation")


def show_audit_json(report: "AuditReport") -> None:
    """Print an audit for programs."""
    from db.invariants import INVARIANTS

    show_json(
        {
            "passed": report.passed,
            "taken_at": report.taken_at,
            "counts": report.counts,
            "invariants": [{"name": each.name, "meaning": each.meaning} for each in INVARIANTS.values()],
            "violations": [asdict(violation) for violation in report.violations],
            "truncated": report.truncated,
        }
    )


def show_audit(report: "AuditReport") -> None:
    """Print an audit for people: each invariant with OK or the number of its violations, then each violation."""
    from collections import Counter

    from db.invariants import INVARIANTS

    broken = Counter(violation.invariant for violation in report.violations)
    shown = table("invariant", "meaning", "result")
    for invariant in INVARIANTS.values():
        number = broken[invariant.name]
        add_row(shown, [invariant.name, invariant.meaning, counted(number, "violation") if number else "OK"])
    show_table(shown)
    if report.violations:
        shown = table("invariant", ">org", "violation")
        for violation in report.violations:
            add_row(shown, [violation.invariant, violation.org_id, violation.detail])
        show_table(shown)
    looked_at = ", ".join(
        counted(report.counts[name], name.removesuffix("s")) for name in ("orgs", "transactions")
    )
    say(
        f"{looked_at}; {'every invariant holds' if report.passed else _found(report)}, as of {format_time(report.taken_at)}."
    )
