"""`metering org`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli import org_settings, suspensions
from metering.cli.gates import follow_gate, gate_of, held_of
from metering.console.errors import CommandError
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
from metering.console.values import MAX_ID, OrgArgument, id_value, text_value
from metering.rules.gates import Balance, GateState

if TYPE_CHECKING:
    from db.accounts.orgs import ListedOrg

MAX_NAME_CHARS = 200


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, find, list, show, rename, set, suspend and resume orgs.",
)
app.command()(suspensions.suspend)
app.command()(suspensions.resume)
app.command("set")(org_settings.set_)


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


@app.command()
def rename(
    org: OrgArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Give an org another name. Its id, balance, keys and prices stay."""
    from db.accounts.orgs import rename_org
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    id_value("ORG", org)
    text_value("NAME", name, max_chars=MAX_NAME_CHARS)
    with open_database(command="org rename") as engine:
        actor = require_operator(engine, "org rename", org_id=org)
        with transaction(engine) as connection:
            before = rename_org(connection, org, name)
            if before != name:
                log_action(connection, actor, "org rename", org_id=org, details={"from": before, "to": name})
    if as_json:
        show_json({"org_id": org, "name": name, "name_before": before})
    elif before == name:
        say(f"Nothing changed: org {org} is called {name} already.")
    else:
        say(f"Org {org} is called {name} now; before, it was {before}.")


@app.command()
def find(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="Part of a name, in upper or lower case; or an id.", show_default=False
        ),
    ],
    limit: LimitOption = 50,
    offset: OffsetOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find orgs by a part of their names, or by id."""
    from db.accounts.orgs import find_orgs
    from metering.console.connections import open_database

    text_value("TEXT", text, max_chars=MAX_NAME_CHARS)
    with open_database(command="org find") as engine, engine.connect() as connection:
        orgs, total = find_orgs(connection, text.strip(), limit=limit, offset=offset)
    _show(orgs, total, offset=offset, as_json=as_json)


@app.command("list")
def list_(
    limit: LimitOption = 50,
    offset: OffsetOption = 0,
    state: Annotated[
        GateState | None,
        typer.Option(
            metavar="STATE", help=f"Only those whose gate is {', '.join(GateState)}.", show_default=False
        ),
    ] = None,
    below: Annotated[
        int | None,
        typer.Option(
            metavar="CENTS",
            help="Only those with a balance below so many US cents, the lowest first.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List orgs in order of id, with their balances: all, or those that are exhausted, or about to be."""
    from db.accounts.orgs import list_orgs
    from metering.console.connections import open_database

    if below is not None and not -MAX_ID <= below <= MAX_ID:
        raise CommandError(f"below: must be a whole number from -{MAX_ID} to {MAX_ID}.")
    with open_database(command="org list") as engine, engine.connect() as connection:
        orgs, total = list_orgs(connection, limit=limit, offset=offset, state=state, below_cents=below)
    _show(orgs, total, offset=offset, as_json=as_json)


def _show(orgs: "Sequence[ListedOrg]", total: int, *, offset: int, as_json: bool) -> None:
    from metering.rules.money import format_usd

    if as_json:
        show_list([asdict(each) for each in orgs], total)
        return
    shown = table(">org", "name", ">balance USD", "gate", "auto-reload")
    for each in orgs:
        add_row(shown, [each.org_id, each.name, format_usd(each.balance_cents), each.state, each.auto_reload])
    show_page(shown, "org", offset=offset, total=total)


@app.command()
def show(
    org: OrgArgument,
    last: Annotated[
        int, typer.Option("--last", metavar="N", min=1, max=100, help="How many of each to show at most.")
    ] = 5,
    as_json: JsonOption = False,
) -> None:
    """Show all of an org on one screen: balance, gate, reloads, cards, keys, prices, what happened last, what operators did."""
    from db.accounts.org_overview import read_overview
    from db.ledger.monthly_usage import read_usage
    from db.ledger.price_book import load_prices_of
    from db.postgres.clock import read_clock
    from metering.console.connections import open_database
    from metering.console.org_screen import OrgScreen

    id_value("ORG", org)
    with open_database(command="org show") as engine:
        with engine.connect() as connection:
            now = read_clock(connection)
            overview = read_overview(connection, org, now, last=last)
            book = load_prices_of(connection, None, org)
            used = {
                tier: read_usage(connection, org, tier, now)
                for tier in book.tiers()
                if (price := book.in_force(tier, org, now)) is not None and price.steps
            }
        screen = OrgScreen(overview, book, gate_of(org), now, used, held_of(org))
        if as_json:
            show_json(screen.json())
        else:
            screen.show()
