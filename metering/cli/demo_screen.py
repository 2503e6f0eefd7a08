"""What `metering demo` shows: a live table for people, plain lines for everybody else, and the summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metering.rules.money import format_usd
from metering.rules.rejections import Reason
from metering.sandbox.outcome import Outcome
from metering.sandbox.telephony import Record

LOW: Final = 0.25
"""The part of its first balance below which an org's bar turns yellow."""


@dataclass(frozen=True, slots=True)
class OrgFigures:
    """One org at a moment."""

    name: str
    calls: int
    spent_cents: int
    balance_cents: int
    first_balance_cents: int

    @property
    def left(self) -> float:
        """The part of its first balance that is left, 0 to 1."""
        return min(max(self.balance_cents / self.first_balance_cents, 0), 1)


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything at a moment."""

    elapsed_s: float
    draining: bool
    pushed: int
    pushed_per_s: float
    billed: int
    billed_per_s: float
    lag: int
    highest_lag: int
    pending: int
    rejected: int
    dropped: int
    """Events that rightly left nothing behind: duplicates, and calls of 0 seconds."""
    balance_cents: int
    busiest: Sequence[OrgFigures]


def plain_line(figures: Figures) -> str:
    """A moment in one line of plain ASCII."""
    return (
        f"{figures.elapsed_s:5.0f} s  pushed {figures.pushed:,} ({figures.pushed_per_s:,.0f}/s)"
        f"  billed {figures.billed:,} ({figures.billed_per_s:,.0f}/s)"
        f"  lag {figures.lag:,}  pending {figures.pending:,}  rejected {figures.rejected:,}"
        f"  duplicates and 0 s {figures.dropped:,}  balances {format_usd(figures.balance_cents)} USD"
    )


def live_view(figures: Figures, duration_s: float) -> RenderableType:
    """A moment of a demo that pushes for `duration_s` as a screen; fits 80 columns and uses what more there is for the bars.

    It ends in an empty line: where the cursor waits, the terminal writes ^C, and at the end of a full line that would shift all.
    """
    return Group(
        _heading(figures, duration_s), Text(), _totals(figures), Text(), _orgs(figures.busiest), Text()
    )


def _heading(figures: Figures, duration_s: float) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    if figures.draining:
        left = figures.lag + figures.pending
        title = (
            Text.assemble(("Draining", "bold"), f"  {left:,} events to go")
            if left
            else Text("All is billed", "bold")
        )
        bar = ProgressBar(total=max(figures.pushed, 1), completed=figures.pushed - left)
    else:
        title = Text.assemble(("Calls come in", "bold"), f"  {figures.elapsed_s:.0f} of {duration_s:.0f} s")
        bar = ProgressBar(total=duration_s, completed=figures.elapsed_s)
    grid.add_row(title, bar)
    return grid


def _totals(figures: Figures) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left", "right", "left"):
        grid.add_column(justify=justify, no_wrap=True, min_width=9 if justify == "right" else 0)
    bold = "bold"
    grid.add_row(
        *("pushed", Text(f"{figures.pushed:,}", bold), f"{figures.pushed_per_s:,.0f}/s"),
        *("   lag", Text(f"{figures.lag:,}", bold), f"highest {figures.highest_lag:,}"),
    )
    grid.add_row(
        *("billed", Text(f"{figures.billed:,}", bold), f"{figures.billed_per_s:,.0f}/s"),
        *("   pending", Text(f"{figures.pending:,}", bold), "in a meter's hands"),
    )
    grid.add_row(
        *("rejected", Text(f"{figures.rejected:,}", bold), ""),
        *("   dropped", Text(f"{figures.dropped:,}", bold), "duplicates, calls of 0 s"),
    )
    grid.add_row("balances", Text(format_usd(figures.balance_cents), bold), "USD")
    return grid


def _orgs(orgs: Sequence[OrgFigures]) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column("the busiest orgs", no_wrap=True)
    for name in ("calls", "spent", "balance"):
        grid.add_column(name, justify="right", no_wrap=True, min_width=8)
    grid.add_column(ratio=1)
    grid.show_header, grid.header_style = True, "dim"
    for org in orgs:
        style = "red" if org.balance_cents <= 0 else "yellow" if org.left < LOW else "green"
        grid.add_row(
            *(org.name, f"{org.calls:,}", format_usd(org.spent_cents)),
            Text(format_usd(org.balance_cents), style),
            ProgressBar(total=1, completed=org.left, complete_style=style, finished_style=style),
        )
    return grid


def summary(
    record: Record, outcome: Outcome, *, took_s: float, highest_lag: int, drained: bool
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
