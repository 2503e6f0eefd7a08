"""What `metering demo` says of a run when it is over."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from rich.console import RenderableType
from rich.table import Table

from metering.console.output import counted
from metering.rules.money import format_usd
from metering.rules.rejections import Reason
from metering.sandbox.telephony.call_record import CallRecord
from metering.trials.demo.screen import shown_ms
from metering.trials.exhaustions import Overspending
from metering.trials.outcome import Outcome

WORST: Final = 10


def summary(
    record: CallRecord, outcome: Outcome, *, took_s: float, highest_lag: int, drained: bool
) -> RenderableType:
    """What the ledger says of the run beside what telephony's own record says."""
    expected = list(record.orgs.values())
    rejected = sum(outcome.rejections.values())
    table = Table(title="Summary", title_justify="left", title_style="bold", header_style="bold")
    table.add_column()
    table.add_column("ledger", justify="right")
    table.add_column("telephony's record", justify="right")
    table.add_row("events pushed", "", f"{record.pushed:,}")
    table.add_row("calls billed", f"{outcome.calls:,}", f"{sum(org.calls for org in expected):,}")
    table.add_row("minutes", f"{outcome.minutes:,}", f"{sum(org.minutes for org in expected):,}")
    table.add_row("cents", f"{outcome.cents:,}", f"{sum(org.cents for org in expected):,}")
    table.add_row(
        "dropped: duplicates + calls of 0 s",
        f"{record.pushed - outcome.calls - rejected:,}" if drained else "",
        f"{record.duplicates:,} + {record.free:,}",
    )
    for reason in Reason:
        if outcome.rejections[reason] or record.rejections[reason]:
            table.add_row(
                f"rejected: {reason}", f"{outcome.rejections[reason]:,}", f"{record.rejections[reason]:,}"
            )
    table.caption = (
        f"{record.pushed / took_s:,.0f} events/s for {took_s:.1f} s; highest lag {highest_lag:,} events"
    )
    table.caption_justify = "left"
    return table


def overspending_table(orgs: Sequence[Overspending]) -> RenderableType:
    """How far below zero exhausted orgs went, worst first, and what brought them there: the worst ones and the sum."""
    table = Table(
        title=f"How far below zero: {counted(len(orgs), 'org')} that was exhausted, and the worst of them"
        if len(orgs) == 1
        else f"How far below zero: {len(orgs):,} orgs that were exhausted, the worst of them first",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    table.add_column("org")
    for name in ("lowest", "the debit that\ncrossed zero", "calls running when\nthe gate closed"):
        table.add_column(name, justify="right")
    table.add_column("ended before,\nbilled after", justify="right")
    for org in orgs[:WORST]:
        _add(table, str(org.org_id), [org])
    if len(orgs) > 1:
        table.add_section()
        _add(table, f"all {len(orgs):,}", orgs)
    return table


def _add(table: Table, name: str, orgs: Sequence[Overspending]) -> None:
    table.add_row(
        name,
        format_usd(sum(org.lowest_cents for org in orgs)),
        format_usd(-sum(org.crossing_cents for org in orgs)),
        f"{sum(org.running for org in orgs):,}: {format_usd(-sum(org.running_cents for org in orgs))}",
        f"{sum(org.ended for org in orgs):,}: {format_usd(-sum(org.ended_cents for org in orgs))}",
    )


def why(org: Overspending) -> str:
    """The worst org's story as a sentence."""
    return (
        f"Org {org.org_id} went to {format_usd(org.lowest_cents)}: "
        f"{counted(org.running, 'call')} running when the gate closed cost {format_usd(org.running_cents)} after it."
    )


def push_to_gate_sentence(took_s: Sequence[float]) -> str:
    """How long gates took to close."""
    return (
        f"Push to gate, {counted(len(took_s), 'time')}: median {shown_ms(median(took_s))}, "
        f"longest {shown_ms(max(took_s))}:\n"
        "from just before the XADD of the event that exhausted the org until its signal\n"
        "was heard on Pub/Sub, both by telephony's own clock."
    )
