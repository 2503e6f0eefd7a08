"""What `metering chaos` found, as tables for people and JSON for programs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from metering.console.output import add_row, counted, say, show_json, show_table, table
from metering.rules.money import format_usd
from metering.trials.chaos.injector import InjectedFault
from metering.trials.chaos.run import Plan, Result
from metering.trials.chaos.schedule import Fault
from metering.trials.chaos.verdict import Verdict

MAX_NAMED: Final = 30
MIB: Final = 1024


def report(plan: Plan, result: Result, took_s: float) -> None:
    """Print everything for people."""
    say("")
    _show_faults(result)
    _show_calls(result.verdict)
    _show_money(result.verdict)
    _show_rest(result)
    for problem in result.verdict.problems[:MAX_NAMED]:
        say(f"  {problem}")
    if len(result.verdict.problems) > MAX_NAMED:
        say(f"  And {len(result.verdict.problems) - MAX_NAMED:,} more.")
    say(
        f"Seed {plan.seed}, faults for {plan.duration_s / 60:g} minutes, {took_s / 60:.1f} in all:"
        f" {'exact' if result.verdict.exact else 'NOT EXACT'}."
    )


def report_json(plan: Plan, result: Result, took_s: float) -> None:
    """Print everything for programs."""
    show_json(
        {
            "seed": plan.seed,
            "minutes": plan.duration_s / 60,
            "took_s": round(took_s, 1),
            "exact": result.verdict.exact,
            "faults": {fault.name.lower(): number for fault, number in _by_kind(result.struck).items()},
            "deadlocks": result.deadlocks,
            "stripe_faults_met": dict(result.stripe_met),
            "verdict": asdict(result.verdict),
            "longest_recovery_s": _longest_s(result),
            "peak_memory_kib": dict(result.peaks_kib),
        }
    )


def _by_kind(struck: Sequence[InjectedFault]) -> Counter[Fault]:
    return Counter(each.strike.fault for each in struck if not each.failed)


def _longest_s(result: Result, fault: Fault | None = None) -> float | None:
    """The longest time until all was right again, after a fault of any kind or of one."""
    took_s = [each.took_s for each in result.recovered if fault in {None, each.struck.strike.fault}]
    return round(max(took_s), 1) if took_s else None


def _show_faults(result: Result) -> None:
    shown = table("fault", ">number", ">all right again after at most, s")
    by_kind = _by_kind(result.struck)
    for fault in Fault:
        add_row(shown, [fault.value, by_kind[fault], _longest_s(result, fault)])
    add_row(shown, ["all", sum(by_kind.values()), _longest_s(result)])
    show_table(shown)


def _rows(title: str, rows: Sequence[tuple[str, Any]]) -> None:
    shown = table(title, ">number")
    for name, value in rows:
        add_row(shown, [name, f"{value:,}" if isinstance(value, int) else value])
    show_table(shown)


def _show_calls(verdict: Verdict) -> None:
    _rows(
        "calls",
        [
            ("events pushed", verdict.events),
            ("events pushed, repeats included", verdict.sent),
            ("calls among them that cost something", verdict.calls),
            ("billed once", verdict.billed_once),
            ("billed twice", verdict.billed_twice),
            ("lost", verdict.lost),
            ("billed wrong", verdict.billed_wrong),
            ("events that can't be billed", verdict.unbillable),
            ("of them kept nowhere", verdict.rejections_lost),
        ],
    )


def _show_money(verdict: Verdict) -> None:
    _rows(
        "payments",
        [
            ("charges at Stripe", verdict.charges),
            ("of them made in Stripe's dashboard", verdict.by_hand),
            ("USD", format_usd(verdict.charged_cents)),
            ("credits", verdict.credits),
            ("charged twice", verdict.charged_twice),
            ("told as charged, and not charged", verdict.not_charged),
            ("told as declined, and charged", verdict.charged_though_declined),
            ("credited twice", verdict.credited_twice),
            ("lost: charged, and not credited", verdict.credits_lost),
            ("credited, and not charged", verdict.credits_without_charge),
            (
                "repeated past a restore or 24 h without a key, or past both: charged again",
                verdict.charged_again,
            ),
        ],
    )


def _show_rest(result: Result) -> None:
    verdict = result.verdict
    _rows(
        "in the end",
        [
            ("balances wrong", verdict.balances_wrong),
            ("gates wrong", verdict.gates_wrong),
            ("violations in the audit", verdict.audit_violations),
            ("violations in the audit against Stripe", verdict.stripe_violations),
        ],
    )
    say(
        f"Postgres found {counted(result.deadlocks, 'deadlock')}; requests to Stripe and webhooks met faults:"
    )
    say(
        "  "
        + (", ".join(f"{kind} {number:,}" for kind, number in sorted(result.stripe_met.items())) or "none")
    )
    shown = table("peak memory (VmHWM)", ">MiB")
    for name, peak in sorted(result.peaks_kib.items()):
        add_row(shown, [name, f"{peak / MIB:.0f}"])
    show_table(shown)
