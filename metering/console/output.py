"""How commands show what they have to say: tables for people, JSON for programs."""

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from metering.rules.times import format_time

PIPED_WIDTH: Final = 200
"""Columns where nobody looks on: wide enough that rows stay lines."""
MAX_CELL_CHARS: Final = 120
MAX_SENTENCE_CHARS: Final = 1_000
"""Where a cell holds what an operator has to read to its end."""
UNBROKEN_CHARS: Final = 36
"""Words up to this length stay whole in every table: times, and ids as Stripe and we make them."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="Show at most so many.")
]
OffsetOption = Annotated[
    int, typer.Option("--offset", metavar="N", min=0, max=2**62, help="Leave out so many at the beginning.")
]


def survive_any_terminal() -> None:
    """See to it that no output of this process fails because its encoding lacks a character: that is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """`text` with whatever could steer a terminal, or isn't in its encoding, shown as an escape: it may come from anywhere.

    Escaped here, and not only when it is written, because a table must know how wide it is.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def counted(number: int, noun: str) -> str:
    """`1 event`, `17,456 events`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def say(sentence: str) -> None:
    """A line for people on standard output."""
    typer.echo(printable(sentence))


def warn(sentence: str) -> None:
    """A line on standard error, so that it never gets into what a program reads."""
    for line in sentence.splitlines():
        typer.echo(printable(line), err=True)


def show_json(value: Mapping[str, Any]) -> None:
    """`value` as one line of JSON: pure ASCII, times as `format_time` has them."""
    typer.echo(json.dumps(value, default=_encode))


def _encode(value: object) -> str:
    if isinstance(value, datetime):
        return format_time(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def show_list(results: Sequence[Mapping[str, Any]], total: int) -> None:
    """A list in the shape that docs/reference/commands.md#what-holds-for-all gives it."""
    show_json({"results": results, "total": total})


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table. A column whose name begins with `>` is aligned to the right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for name in columns:
        made.add_column(
            name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold"
        )
    return made


def add_row(to: Table, cells: Iterable[object], *, max_chars: int = MAX_CELL_CHARS) -> None:
    """Add a row of plain text: times as `format_time` has them, None as a dash, longer text cut."""
    to.add_row(*(Text(_cell(cell, max_chars)) for cell in cells))


def _cell(value: object, max_chars: int) -> str:
    if value is None:
        return "-"
    text = printable(format_time(value) if isinstance(value, datetime) else str(value))
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."


def console(*, stderr: bool = False) -> Console:
    """Where rich prints to; wide where it isn't a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH, highlight=False)


def show_table(shown: Table) -> None:
    """Print a table for people."""
    out = console()
    out.print(laid_out(shown, out.width))


def laid_out(shown: Table, width: int) -> RenderableType:
    """A table so that it fits `width` columns with no word broken; row by row, where it can't be one beside the other."""
    texts = [[_plain(cell) for cell in (column.header, *column.cells)] for column in shown.columns]
    least = [min(max(_longest_word(text) for text in column), UNBROKEN_CHARS) for column in texts]
    most = [max(cell_len(text) for text in column) for column in texts]
    spare = width - sum(least) - 3 * len(least) - 1  # a border and two blanks for each column
    if spare < 0:
        return _row_by_row(shown, texts)
    while spare and (missing := max(full - given for full, given in zip(most, least, strict=True))) > 0:
        widest = next(at for at, full in enumerate(most) if full - least[at] == missing)
        least[widest] += 1
        spare -= 1
    for column, given in zip(shown.columns, least, strict=True):
        column.width = given
    return shown


def _row_by_row(shown: Table, texts: Sequence[Sequence[str]]) -> RenderableType:
    """Each row as lines of a name and a value, a blank line between two rows."""
    rows = Table(
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        title=shown.title,
        title_justify="left",
    )
    rows.add_column(no_wrap=True, style="bold")
    rows.add_column(overflow="fold")
    for at in range(shown.row_count):
        if at:
            rows.add_row("", "")
        for name, *values in texts:
            rows.add_row(name, Text(values[at]))
    return rows


def show_fields(title: str, fields: Iterable[tuple[str, object]]) -> None:
    """Print names with their values, a line each, under a title; long values are folded, and nothing is cut."""
    shown = Table(
        box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left"
    )
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    for name, value in fields:
        text = format_time(value) if isinstance(value, datetime) else "-" if value is None else str(value)
        shown.add_row(name, Text(printable(text)))
    console().print(shown)


def _plain(cell: RenderableType) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def show_page(shown: Table, noun: str, *, offset: int, total: int) -> None:
    """Print a table that holds a page of a longer list, and say what is left out."""
    if total == 0:
        say(f"There are no {noun}s.")
        return
    show_table(shown)
    if shown.row_count < total:
        rest = offset + shown.row_count
        say(
            f"{shown.row_count} of {total:,}"
            + (f"; --offset {rest} shows the next." if rest < total else ".")
        )


def progress_bar(nouns: str = "events") -> Progress:
    """A progress bar on standard error, which counts `nouns` in its field `count`; silent where that isn't a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.fields[count]:,}} {nouns}"),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def shown_path(path: Path) -> str:
    """A path as short as it can be written from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
