"""`metering audit`."""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metering.console.errors import CommandError
from metering.console.output import (
    MAX_SENTENCE_CHARS,
    JsonOption,
    add_row,
    counted,
    say,
    show_json,
    show_table,
    table,
)
from metering.rules.times import format_time

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from db.audit.full import AuditReport
    from metering.payments.audit import StripeAudit


def audit(
    stripe: Annotated[
        bool,
        typer.Option("--stripe", help="Compare attempts, credits and refunds with what Stripe holds, too."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove from one snapshot of the database that every cent is where it belongs.

    Exit status 0 means that every invariant holds; 1 names each violation. With `--stripe` the charges that Stripe lists are held
    against the ledger as well.
    """
    from db.audit.full import run_audit
    from metering.console.connections import open_database

    with open_database(command="audit") as engine:
        report = run_audit(engine)
        compared = _compare_with_stripe(engine) if stripe else None
    if as_json:
        show_audit_json(report, compared)
    else:
        show_audit(report)
        if compared is not None:
            _show_comparison(compared)
    require_passed(report)
    if compared is not None and compared.violations:
        broken = ", ".join(sorted({violation.invariant for violation in compared.violations}))
        number = counted(len(compared.violations), "violation")
        raise CommandError(f"The ledger and Stripe disagree: {number}, of {broken}.")


def _compare_with_stripe(engine: "Engine") -> "StripeAudit":
    from metering.console.payments import open_command_stripe
    from metering.payments.audit import audit_against_stripe
    from metering.payments.stripe_failures import StripeFailure

    try:
        with open_command_stripe() as stripe:
            return audit_against_stripe(engine, stripe)
    except StripeFailure as failure:
        raise CommandError(f"Stripe can't be asked: {failure.message}") from failure


_WHERE_IT_STANDS: Final = re.compile(r" \(docs/[^)]*\)")
"""A page's path is too long for a cell of a table that is 80 columns wide; `--json` has it."""


def _show_comparison(compared: "StripeAudit") -> None:
    from metering.payments.audit import MEANINGS
    from metering.rules.money import format_usd

    shown = table("held against Stripe", "meaning", "result")
    for name, meaning in MEANINGS.items():
        number = sum(violation.invariant == name for violation in compared.violations)
        add_row(
            shown,
            [name, meaning, counted(number, "violation") if number else "OK"],
            max_chars=MAX_SENTENCE_CHARS,
        )
    show_table(shown)
    if compared.violations:
        shown = table("invariant", ">org", "violation")
        for violation in compared.violations:
            add_row(
                shown, [violation.invariant, violation.org_id, violation.detail], max_chars=MAX_SENTENCE_CHARS
            )
        show_table(shown)
    say(
        f"{counted(compared.charges, 'charge')} at Stripe: {format_usd(compared.taken_cents)} USD taken,"
        f" {format_usd(compared.returned_cents)} USD returned; {compared.settling} on their way."
    )
    if compared.strangers:
        say(
            f"{counted(len(compared.strangers), 'payment')} at Stripe belong to no org's customer and are not booked:"
            " `metering payment list --unbooked` shows them."
        )


def require_passed(report: "AuditReport") -> None:
    """Raise CommandError, naming the broken invariants, unless the audit passed."""
    if not report.passed:
        broken = ", ".join(sorted({violation.invariant for violation in report.violations}))
        raise CommandError(f"The audit failed: {_found(report)}, of {broken}.")


def _found(report: "AuditReport") -> str:
    return ("at least " if report.truncated else "") + counted(len(report.violations), "violation")


def show_audit_json(report: "AuditReport", compared: "StripeAudit | None" = None) -> None:
    """Print an audit for programs."""
    from db.audit.invariants import INVARIANTS

    show_json(
        {
            "passed": report.passed,
            "taken_at": report.taken_at,
            "counts": report.counts,
            "invariants": [{"name": each.name, "meaning": each.meaning} for each in INVARIANTS.values()],
            "violations": [asdict(violation) for violation in report.violations],
            "truncated": report.truncated,
            **({} if compared is None else {"stripe": asdict(compared)}),
        }
    )


def show_audit(report: "AuditReport") -> None:
    """Print an audit for people: each invariant with OK or the number of its violations, then each violation."""
    from collections import Counter

    from db.audit.invariants import INVARIANTS

    broken = Counter(violation.invariant for violation in report.violations)
    shown = table("invariant", "meaning", "result")
    for invariant in INVARIANTS.values():
        number = broken[invariant.name]
        meaning = _WHERE_IT_STANDS.sub("", invariant.meaning)
        add_row(
            shown,
            [invariant.name, meaning, counted(number, "violation") if number else "OK"],
            max_chars=MAX_SENTENCE_CHARS,
        )
    show_table(shown)
    if report.violations:
        shown = table("invariant", ">org", "violation")
        for violation in report.violations:
            add_row(
                shown, [violation.invariant, violation.org_id, violation.detail], max_chars=MAX_SENTENCE_CHARS
            )
        show_table(shown)
    looked_at = ", ".join(
        counted(report.counts[name], name.removesuffix("s")) for name in ("orgs", "transactions")
    )
    say(
        f"{looked_at}; {'every invariant holds' if report.passed else _found(report)}, as of {format_time(report.taken_at)}."
    )
