"""`metering org`."""

from typing import Annotated

import typer

from metering.cli import suspensions
from metering.cli.gates import follow_gate
from metering.console.output import (
    JsonOption,
    LimitOption,
    OffsetOption,
    add_row,
    say,
    show_json,
    show_list,
    show_page,
    table,
)
from metering.console.values import id_value, text_value
from metering.rules.gates import Balance

MAX_NAME_CHARS = 200

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make orgs, list them with their balances, suspend and resume them.",
)
app.command()(suspensions.suspend)
app.command()(suspensions.resume)


@app.command()
def create(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="What people call it; need not be unique.", show_default=False),
    ],
    org_id: Annotated[
        int | None,
        typer.Option(
            "--id",
            metavar="N",
            help="Its id, where telephony knows it by one already.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an org, with a balance of 0.00 and the next free id, or the given one."""
    from db.accounts.orgs import create_org
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    if org_id is not None:
        id_value("id", org_id)
    text_value("NAME", name, max_chars=MAX_NAME_CHARS)
    with open_database(command="org create") as engine:
        actor = require_operator(engine, "org create", org_id=org_id)
        with transaction(engine) as connection:
            made = create_org(connection, name, read_clock(connection), org_id=org_id)
            log_action(connection, actor, "org create", org_id=made, details={"name": name})
    follow_gate(Balance(made, balance_cents=0, version=0))
    if as_json:
        show_json({"org_id": made})
    else:
        say(f"Org {made} is made: {name}, balance 0.00 USD.")


@app.command("list")
def list_(limit: LimitOption = 50, offset: OffsetOption = 0, as_json: JsonOption = False) -> None:
    """List orgs in order of id, with their balances."""
    from db.accounts.orgs import list_orgs
    from metering.console.connections import open_database
    from metering.rules.money import format_usd

    with open_database(command="org list") as engine, engine.connect() as connection:
        accounts, total = list_orgs(connection, limit=limit, offset=offset)
    if as_json:
        results = [
            {
                "org_id": account.org_id,
                "name": account.name,
                "balance_cents": account.balance_cents,
                "created_at": account.created_at,
            }
            for account in accounts
        ]
        show_list(results, total)
        return
    shown = table(">org", "name", ">balance USD", "created")
    for account in accounts:
        add_row(shown, [account.org_id, account.name, format_usd(account.balance_cents), account.created_at])
    show_page(shown, "org", offset=offset, total=total)
