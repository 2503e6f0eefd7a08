"""What `metering demo` shows while it runs: a live table for people, plain lines for everybody else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metering.rules.money import format_usd

LOW: Final = 0.25
"""The part of its first balance below which an org's bar turns yellow."""


@dataclass(frozen=True, slots=True)
class OrgFigures:
    """One org at a moment."""

    name: str
    pays_by: str
    spent_cents: int
    balance_cents: int
    first_balance_cents: int
    gate: str

    @property
    def left(self) -> float:
        """The part of its first balance that is left, 0 to 1."""
        return min(max(self.balance_cents / self.first_balance_cents, 0), 1)


@dataclass(frozen=True, slots=True)
class GateFigures:
    """Gates, and what they do to calls, at a moment."""

    open: int
    exhausted: int
    suspended: int
    """Shown in the line of the org, where there is a table."""
    running: int
    started: int
    refused_inbound: int
    refused_outbound: int
    unanswered: int
    """Calls refused because no gate could be asked."""
    signals: int
    signals_per_s: float
    push_to_gate_median_s: float | None
    push_to_gate_longest_s: float | None


@dataclass(frozen=True, slots=True)
class ChargeFigures:
    """Charges to cards, and orgs that aren't reloaded, at a moment."""

    open: int
    paused: int
    """Orgs whose card failed."""
    waiting: int
    """Orgs whose reload doesn't fit into the month."""
    month_left_cents: int | None
    """What is left in the month where it is limited, all together; None where nobody has a limit."""


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
    gates: GateFigures
    charges: ChargeFigures
    busiest: Sequence[OrgFigures]


def plain_line(figures: Figures) -> str:
    """A moment in one line of plain ASCII."""
    gates = figures.gates
    charges = figures.charges
    left = "-" if charges.month_left_cents is None else format_usd(charges.month_left_cents)
    unanswered = f"  not asked {gates.unanswered:,}" if gates.unanswered else ""
    return (
        f"{figures.elapsed_s:5.0f} s  pushed {figures.pushed:,} ({figures.pushed_per_s:,.0f}/s)"
        f"  billed {figures.billed:,} ({figures.billed_per_s:,.0f}/s)"
        f"  lag {figures.lag:,}  pending {figures.pending:,}  rejected {figures.rejected:,}"
        f"  duplicates and 0 s {figures.dropped:,}  balances {format_usd(figures.balance_cents)} USD"
        f"  running {gates.running:,}  gates open {gates.open:,} exhausted {gates.exhausted:,} suspended {gates.suspended:,}"
        f"  refused in {gates.refused_inbound:,} out {gates.refused_outbound:,}{unanswered}"
        f"  signals {gates.signals:,} ({gates.signals_per_s:,.1f}/s)"
        f"  charges open {charges.open:,} reloads paused {charges.paused:,} capped {charges.waiting:,} month left {left}"
        f"  push to gate {shown_ms(gates.push_to_gate_median_s)}, longest {shown_ms(gates.push_to_gate_longest_s)}"
    )


def shown_ms(took_s: float | None) -> str:
    """A time in milliseconds; a dash where there is none yet."""
    return "-" if took_s is None else f"{took_s * 1000:,.0f} ms"


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
    elif figures.elapsed_s >= duration_s:
        title = Text.assemble(("The last calls end", "bold"), f"  {figures.gates.running:,} running")
        bar = ProgressBar(total=1, completed=1)
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
    gates = figures.gates
    grid.add_row(
        *("balances", Text(format_usd(figures.balance_cents), bold), "USD"),
        *("   running", Text(f"{gates.running:,}", bold), f"{gates.started:,} started"),
    )
    refused = gates.refused_inbound + gates.refused_outbound + gates.unanswered
    directions = f"in {gates.refused_inbound:,} out {gates.refused_outbound:,}"
    grid.add_row(
        *("gates", Text(f"{gates.open:,}", "bold green"), "open"),
        *(
            "   refused",
            Text(f"{refused:,}", bold),
            f"{gates.unanswered:,} not asked" if gates.unanswered else directions,
        ),
    )
    grid.add_row(
        *("", Text(f"{gates.exhausted:,}", "bold red"), "exhausted"),
        *(
            "   to gate",
            Text(shown_ms(gates.push_to_gate_median_s), bold),
            f"longest {shown_ms(gates.push_to_gate_longest_s)}",
        ),
    )
    charges = figures.charges
    left = "-" if charges.month_left_cents is None else format_usd(charges.month_left_cents)
    grid.add_row(
        *("signals", Text(f"{gates.signals:,}", bold), f"{gates.signals_per_s:,.1f}/s"),
        *("   charges", Text(f"{charges.open:,}", bold), "open"),
    )
    grid.add_row(
        *("reloads", Text(f"{charges.paused:,}", bold), "paused"),
        *("   capped", Text(f"{charges.waiting:,}", bold), f"month left {left}"),
    )
    return grid


def _orgs(orgs: Sequence[OrgFigures]) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column("the busiest orgs", no_wrap=True)
    grid.add_column("paid by", no_wrap=True, min_width=14)
    for name in ("spent", "balance"):
        grid.add_column(name, justify="right", no_wrap=True, min_width=8)
    grid.add_column("gate", no_wrap=True, min_width=9)
    grid.add_column(ratio=1)
    grid.show_header, grid.header_style = True, "dim"
    for org in orgs:
        style = "red" if org.balance_cents <= 0 else "yellow" if org.left < LOW else "green"
        grid.add_row(
            *(org.name, org.pays_by, format_usd(org.spent_cents)),
            Text(format_usd(org.balance_cents), style),
            Text(org.gate, "green" if org.gate == "open" else "red"),
            ProgressBar(total=1, completed=org.left, complete_style=style, finished_style=style),
        )
    return grid
