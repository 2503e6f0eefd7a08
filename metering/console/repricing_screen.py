"""What `metering reprice` shows: a table for people, JSON or CSV for programs."""

import csv
import heapq
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from metering.console.output import add_row, counted, say, show_json, show_table, table
from metering.rules.money import format_microusd, format_usd
from metering.rules.repricing import RepricingTerms
from metering.rules.steps import format_steps

MAX_ROWS: Final = 50
"""Orgs in a table: those with the greatest differences; CSV and JSON have all."""
COLUMNS: Final = ("org_id", "calls", "billable_seconds", "billed_cents", "repriced_cents", "difference_cents")


@dataclass(frozen=True, slots=True)
class OrgLine:
    """What an org's calls come to. `transaction_id` is the adjustment's, where one was made."""

    org_id: int
    calls: int
    billable_seconds: int
    billed_cents: int
    repriced_cents: int
    transaction_id: int | None = None

    @property
    def difference_cents(self) -> int:
        """More than was billed; negative for less."""
        return self.repriced_cents - self.billed_cents


@dataclass(slots=True)
class Totals:
    """Of all orgs."""

    orgs: int = 0
    calls: int = 0
    billable_seconds: int = 0
    billed_cents: int = 0
    repriced_cents: int = 0
    adjustments: int = 0
    most_different: list[tuple[int, int, OrgLine]] = field(default_factory=list)
    """At most `MAX_ROWS`, a heap by the size of the difference."""

    @property
    def difference_cents(self) -> int:
        """More than was billed; negative for less."""
        return self.repriced_cents - self.billed_cents

    def counting(self, lines: Iterable[OrgLine]) -> Iterator[OrgLine]:
        """Pass lines on, and count them."""
        for line in lines:
            self.orgs += 1
            self.calls += line.calls
            self.billable_seconds += line.billable_seconds
            self.billed_cents += line.billed_cents
            self.repriced_cents += line.repriced_cents
            self.adjustments += line.transaction_id is not None
            entry = (abs(line.difference_cents), -line.org_id, line)
            if len(self.most_different) < MAX_ROWS:
                heapq.heappush(self.most_different, entry)
            else:
                heapq.heappushpop(self.most_different, entry)
            yield line

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "orgs": self.orgs,
            "calls": self.calls,
            "billable_seconds": self.billable_seconds,
            "billed_cents": self.billed_cents,
            "repriced_cents": self.repriced_cents,
            "difference_cents": self.difference_cents,
        }


def show_csv(lines: Iterable[OrgLine], *, applied: bool) -> None:
    """A line for each org as it comes, after one with the columns' names; `applied` adds each adjustment's id."""
    written = csv.writer(sys.stdout, lineterminator="\n")
    written.writerow((*COLUMNS, "transaction_id") if applied else COLUMNS)
    for line in lines:
        row = [getattr(line, name) for name in COLUMNS]
        written.writerow([*row, line.transaction_id] if applied else row)


def show_as_json(
    lines: Iterable[OrgLine], totals: Totals, terms: RepricingTerms, said: dict[str, Any], *, applied: bool
) -> None:
    """Everything as one line of JSON; `said` is what is known besides terms, orgs and totals."""
    results = []
    for line in lines:
        row = {name: getattr(line, name) for name in COLUMNS}
        results.append(row | {"transaction_id": line.transaction_id} if applied else row)
    show_json(terms_json(terms) | said | {"results": results, "total": totals.orgs, "totals": totals.json()})


def terms_json(terms: RepricingTerms) -> dict[str, Any]:
    """Terms for programs: money as text, because a JSON number may become a float; null is as each call was billed."""
    fee = terms.connect_fee_microusd
    return {
        "tier": terms.tier,
        "from": terms.from_at,
        "to": terms.until_at,
        "org_id": terms.org_id,
        "usd_per_minute": None if terms.steps else format_microusd(terms.rate_microusd_per_minute),
        "steps": format_steps(terms.steps) or None,
        "increment": None if terms.increment is None else "{}/{}".format(*terms.increment),
        "minimum_seconds": terms.minimum_s,
        "connect_fee_usd": None if fee is None else format_microusd(fee),
    }


def show_as_table(lines: Iterable[OrgLine], totals: Totals, *, applied: bool) -> None:
    """The orgs with the greatest differences, and all of them together."""
    for _ in lines:
        pass
    if not totals.orgs:
        say("No call of that tier and time is billed.")
        return
    adjustment = (">adjustment",) if applied else ()
    shown = table(
        ">org", ">calls", ">seconds", ">billed USD", ">re-priced USD", ">difference USD", *adjustment
    )
    for _, _, line in sorted(totals.most_different, reverse=True):
        cells = [
            line.org_id,
            f"{line.calls:,}",
            f"{line.billable_seconds:,}",
            format_usd(line.billed_cents),
            format_usd(line.repriced_cents),
            format_usd(line.difference_cents),
        ]
        add_row(shown, [*cells, line.transaction_id] if applied else cells)
    show_table(shown)
    if totals.orgs > MAX_ROWS:
        say(
            f"These are the {MAX_ROWS} orgs with the greatest differences, of {totals.orgs:,}; --csv and --json have all."
        )
    say(
        f"{counted(totals.calls, 'call')} of {counted(totals.orgs, 'org')} are billed {format_usd(totals.billed_cents)} USD;"
        f" re-priced they come to {format_usd(totals.repriced_cents)} USD,"
        f" a difference of {format_usd(totals.difference_cents)} USD."
    )
