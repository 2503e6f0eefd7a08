"""`metering attempt`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.console.output import (
    JsonOption,
    LimitOption,
    OffsetOption,
    add_row,
    show_list,
    show_page,
    table,
)
from metering.console.values import id_value

if TYPE_CHECKING:
    from db.attempts.attempts import Attempt

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List charges: top-ups and auto-reloads, from before Stripe is asked to their end.",
)


@app.callback()
def attempt() -> None:
    """Keep `list` a command of its own, although there is no other."""


@app.command("list")
def list_(
    limit: LimitOption = 50,
    offset: OffsetOption = 0,
    org: Annotated[
        int | None, typer.Option(metavar="ORG", help="Only this org's.", show_default=False)
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Only those that have no end yet.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List charges, top-ups and auto-reloads, newest first.

    One with the status `open` was begun and has no end yet. Nobody needs to do anything: `jobs` asks Stripe until the end is
    known, and never charges twice. After 27 hours `metering audit` names it.
    """
    from db.attempts.attempts import list_attempts
    from metering.console.connections import open_database
    from metering.rules.money import format_usd

    if org is not None:
        id_value("org", org)
    with open_database(command="attempt list") as engine, engine.connect() as connection:
        attempts, total = list_attempts(connection, limit=limit, offset=offset, org_id=org, open_only=open_)
    if as_json:
        show_list([_json(each) for each in attempts], total)
        return
    shown = table(
        "attempt", ">org", "kind", ">USD", "status", "at Stripe", "why not", "made", "sent", "looked at next"
    )
    for each in attempts:
        add_row(
            shown,
            [
                *(each.id, each.org_id, each.kind, format_usd(each.amount_cents), each.status),
                *(each.intent_status, each.failure_code, each.created_at, each.last_sent_at),
                each.look_at if each.open else None,
            ],
        )
    show_page(shown, "attempt", offset=offset, total=total)


def _json(attempt: "Attempt") -> dict[str, Any]:
    return asdict(attempt) | {"id": str(attempt.id)}
