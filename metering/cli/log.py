"""`metering log`."""

from typing import Annotated

import typer

from metering.console.operator_log import log_cells, log_json
from metering.console.output import (
    JsonOption,
    LimitOption,
    OffsetOption,
    add_row,
    show_list,
    show_page,
    table,
)
from metering.console.values import id_value, time_value


def log(
    limit: LimitOption = 50,
    offset: OffsetOption = 0,
    org: Annotated[
        int | None, typer.Option(metavar="ORG", help="Only what is about this org.", show_default=False)
    ] = None,
    operator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what this operator did.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only from this time on: ISO 8601 with an offset.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what operators changed, and what was refused to them: who, when, what and why, newest first."""
    from db.operators.log import list_log
    from metering.console.connections import open_database

    if org is not None:
        id_value("org", org)
    start = None if since is None else time_value("since", since)
    with open_database(command="log") as engine, engine.connect() as connection:
        entries, total = list_log(
            connection, limit=limit, offset=offset, org_id=org, operator=operator, since=start
        )
    if as_json:
        show_list([log_json(entry) for entry in entries], total)
        return
    shown = table("when", "who", "did", ">org", "to", "details", "why")
    for entry in entries:
        add_row(shown, log_cells(entry))
    show_page(shown, "logged command", offset=offset, total=total)
