"""Tables in narrow terminals: nothing is lost, and no time, id or other word is broken while there is a way around it."""

import io
import re
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from rich.console import Console
from rich.table import Table

from db.audit.full import AuditReport
from db.audit.invariants import INVARIANTS
from metering.cli.audit import show_audit
from metering.console import output
from metering.console.output import add_row, laid_out, table
from metering.trials.chaos.schedule import Fault

AT = datetime(2026, 4, 20, 18, 25, 6, 201_000, tzinfo=UTC)
TIME = "2026-04-20T18:25:06.201Z"
ATTEMPT = UUID("2f1c0a4e-7a52-4a86-9f0e-1a6d3b0c8f11")


def attempts() -> Table:
    made = table(
        "attempt", ">org", "kind", ">USD", "status", "at Stripe", "why not", "made", "sent", "looked at next"
    )
    for _ in range(2):
        cells = [
            ATTEMPT,
            42,
            "auto_reload",
            "50.00",
            "open",
            "requires_action",
            "insufficient_funds",
            AT,
            AT,
            None,
        ]
        add_row(made, cells)
    return made


def prices() -> Table:
    made = table("tier", ">USD per minute", "increment", ">minimum s", ">connect fee USD", "in force from")
    add_row(made, ["bolt", "0.08", "60/60", 0, "0.00", AT])
    return made


def orgs() -> Table:
    made = table(">org", "name", ">balance USD", "created", title="Orgs")
    add_row(
        made, [42, "The Company of Merchants Trading into the North Sea and Beyond, limited", "12,345.67", AT]
    )
    add_row(made, [43, "x" * 120, "0.00", AT])
    return made


def shown(made: Table, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(laid_out(made, width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("made", [attempts, prices, orgs])
def test_no_time_is_broken_and_no_line_is_too_long(made: Callable[[], Table], width: int) -> None:
    lines = shown(made(), width)
    times = sum(
        cell.plain == TIME for column in made().columns for cell in column.cells if hasattr(cell, "plain")
    )
    assert sum(line.count(TIME) for line in lines) == times > 0
    assert max(map(len, lines)) <= width


def test_what_does_not_fit_side_by_side_is_shown_row_by_row() -> None:
    lines = shown(attempts(), 80)
    assert f"attempt         {ATTEMPT}" in [line.rstrip() for line in lines]
    assert f"made            {TIME}" in [line.rstrip() for line in lines]
    assert [line.rstrip() for line in lines].count("looked at next  -") == 2
    assert "" in [line.strip() for line in lines], "rows are told apart"


def test_what_fits_is_a_table() -> None:
    for width in (80, 120):
        [row] = [line for line in shown(prices(), width) if "bolt" in line]
        assert "0.08" in row
        assert TIME in row


def test_words_are_not_broken_in_a_table() -> None:
    text = "\n".join(shown(orgs(), 80))
    for word in ("Merchants", "Trading", "limited", "12,345.67"):
        assert word in text


def test_no_word_of_the_audit_is_broken_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "PIPED_WIDTH", 80)
    show_audit(AuditReport(AT, {"orgs": 1, "transactions": 2}, [], False))
    shown_words = set(capsys.readouterr().out.split())
    told = {
        word for each in INVARIANTS.values() for word in re.sub(r" \(docs/[^)]*\)", "", each.meaning).split()
    }
    assert told <= shown_words, told - shown_words
    assert INVARIANTS.keys() <= shown_words


def test_no_word_of_chaos_is_broken_at_80_columns() -> None:
    made = table("fault", ">number", ">all right again after at most, s")
    for fault in Fault:
        add_row(made, [fault.value, 12, 34.5])
    shown_words = set("\n".join(shown(made, 80)).split())
    assert {word for fault in Fault for word in fault.value.split()} <= shown_words
