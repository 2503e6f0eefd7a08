"""`metering tier`."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, TypeVar

import typer

from metering.console.errors import CommandError
from metering.console.output import JsonOption, counted, say, show_json, show_list
from metering.console.values import id_value, time_value

S = TypeVar("S")
T = TypeVar("T")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The tier, such as bolt.", show_default=False)
]
RestoredOption = Annotated[
    bool,
    typer.Option(
        "--restored",
        help="After a restore: set again what the backup doesn't know, with its own time in --from. It may be past, as long as"
        " no call of that tier and time is billed.",
    ),
]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Set what a minute costs, and list prices."
)


@app.command("set")
def set_(
    name: NameArgument,
    usd_per_minute: Annotated[
        str | None,
        typer.Argument(
            metavar="[USD_PER_MINUTE]",
            help="USD per minute, at most 6 decimals, such as 0.08; left out with --step.",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="UP_TO_MINUTES:USD",
            help="Instead of one price per minute: the price up to so many minutes that the org has used of the tier in the"
            " month, such as 500:0 for 500 included minutes. Once for each step, in their order; the last one without minutes,"
            " such as :0.05.",
            show_default=False,
        ),
    ] = None,
    increment: Annotated[
        str,
        typer.Option(
            metavar="FIRST/NEXT",
            help="Billing increment: seconds are rounded up to FIRST, then in steps of NEXT.",
        ),
    ] = "60/60",
    minimum: Annotated[
        int, typer.Option(metavar="SECONDS", help="A call costs at least so many seconds.")
    ] = 0,
    connect_fee: Annotated[
        str, typer.Option(metavar="USD", help="USD per call on top, at most 6 decimals.")
    ] = "0",
    in_force_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Calls that start at this time or later cost it: ISO 8601 with an offset, at least 60 s ahead. "
            "Unset: 60 s from now, unless that price is in force then anyway. A tier's first price is in force since ever.",
            show_default=False,
        ),
    ] = None,
    org: Annotated[
        int | None,
        typer.Option(
            "--org",
            metavar="ORG",
            help="Only this org's calls cost it, instead of the tier's price.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="Yes, it is meant to be more than ten times or less than a tenth of the price before.",
        ),
    ] = False,
    restored: RestoredOption = False,
    as_json: JsonOption = False,
) -> None:
    """Set a tier's price, or with --org one org's own; a tier that isn't there yet is made.

    Calls are priced with what was in force when they started, so a later price never changes what is billed already. Set again
    for the same --from it replaces what was set for then, until 60 s before.
    """
    from db.ledger.prices import set_price
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.console.price_screen import price_details, show_set_price
    from metering.rules.money import parse_usd
    from metering.rules.pricing import MAX_MINIMUM_S, Price, parse_increment
    from metering.rules.steps import parse_steps

    first_s, next_s = _parsed("increment", parse_increment, increment)
    if (usd_per_minute is None) == (not step):
        raise CommandError("USD_PER_MINUTE: say either a price per minute, or its steps with --step.")
    steps = _parsed("step", parse_steps, step) if step else ()
    rate_microusd = (
        steps[-1].rate_microusd_per_minute
        if steps
        else _parsed("USD_PER_MINUTE", parse_usd, usd_per_minute or "")
    )
    connect_fee_microusd = _parsed("connect-fee", parse_usd, connect_fee)
    if not 0 <= minimum <= MAX_MINIMUM_S:
        raise CommandError(f"minimum: must be from 0 to {MAX_MINIMUM_S} seconds.")
    start = _start(in_force_from, restored=restored)
    if org is not None:
        id_value("org", org)
    try:
        terms = (rate_microusd, first_s, next_s, minimum, connect_fee_microusd)
        price = Price(name, start, *terms, org, steps if len(steps) > 1 else ())
    except ValueError as error:
        raise CommandError(f"{error}.") from error
    with open_database(command="tier set") as engine:
        actor = require_operator(engine, "tier set")
        with transaction(engine) as connection:
            done = set_price(
                connection, price, lambda: read_clock(connection), restored=restored, allow_unusual=yes
            )
            if done.changed:
                log_action(
                    connection, actor, "tier set", org_id=org, subject=name, details=price_details(done)
                )
    show_set_price(done, as_json=as_json)


def _start(in_force_from: str | None, *, restored: bool) -> datetime | None:
    if in_force_from is not None:
        return time_value("from", in_force_from)
    if restored:
        raise CommandError(
            "restored: say with --from since when the price was in force (`metering tier list` showed it)."
        )
    return None


@app.command()
def clear(
    name: NameArgument,
    org: Annotated[
        int, typer.Option("--org", metavar="ORG", help="The org whose own price ends.", show_default=False)
    ],
    in_force_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Calls that start at this time or later cost the tier's price again: ISO 8601 with an offset, at least 60 s"
            " ahead. Unset: 60 s from now.",
            show_default=False,
        ),
    ] = None,
    restored: RestoredOption = False,
    as_json: JsonOption = False,
) -> None:
    """End an org's own price of a tier."""
    from db.ledger.prices import clear_price
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.console.price_screen import price_details, show_set_price

    id_value("org", org)
    start = _start(in_force_from, restored=restored)
    with open_database(command="tier clear") as engine:
        actor = require_operator(engine, "tier clear")
        with transaction(engine) as connection:
            done = clear_price(
                connection, name, org, start, lambda: read_clock(connection), restored=restored
            )
            if done.changed:
                log_action(
                    connection, actor, "tier clear", org_id=org, subject=name, details=price_details(done)
                )
    show_set_price(done, as_json=as_json)


@app.command()
def cancel(
    name: NameArgument,
    in_force_from: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="From when on it was to be in force, as `metering tier list` shows it: ISO 8601 with an offset.",
            show_default=False,
        ),
    ],
    org: Annotated[
        int | None,
        typer.Option(
            "--org",
            metavar="ORG",
            help="The org's own price, or its end, instead of the tier's.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take back a price, or the end of an org's own, that isn't in force yet: until 60 s before."""
    from db.ledger.prices import cancel_price
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.console.price_screen import price_json, price_terms, what_counts

    start = time_value("from", in_force_from)
    if org is not None:
        id_value("org", org)
    with open_database(command="tier cancel") as engine:
        actor = require_operator(engine, "tier cancel")
        with transaction(engine) as connection:
            cancelled = cancel_price(connection, name, org, start, lambda: read_clock(connection))
            log_action(
                connection, actor, "tier cancel", org_id=org, subject=name, details=price_terms(cancelled)
            )
    if as_json:
        show_json({**price_json(cancelled), "cancelled": True})
    else:
        say(f"Cancelled: {what_counts(cancelled)}. What was set before it stays in force.")


def _parsed(name: str, parse: Callable[[S], T], text: S) -> T:
    """What `parse` makes of `text`; its ValueError says the rule, and this the name."""
    try:
        return parse(text)
    except ValueError as error:
        raise CommandError(f"{name}: {error}.") from error


@app.command("list")
def list_(
    org: Annotated[
        int | None,
        typer.Option(
            "--org", metavar="ORG", help="The org's own prices, and their ends.", show_default=False
        ),
    ] = None,
    orgs: Annotated[bool, typer.Option("--orgs", help="Those of all orgs, and their ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List every price of the tiers, or with --org one org's own: past, present and to come, by tier and date."""
    from db.ledger.prices import count_orgs_with_prices, list_org_prices, list_prices
    from metering.console.connections import open_database
    from metering.console.price_screen import price_json, show_prices

    if org is not None:
        id_value("org", org)
        if orgs:
            raise CommandError("orgs: say either --org or --orgs.")
    with open_database(command="tier list") as engine, engine.connect() as connection:
        prices = list_org_prices(connection) if orgs else list_prices(connection, org_id=org)
        count = 0 if as_json or orgs or org is not None else count_orgs_with_prices(connection)
    if as_json:
        show_list([price_json(price) for price in prices], len(prices))
        return
    show_prices(prices, of_orgs=orgs or org is not None)
    if org is not None:
        say(f"Where org {org} has no price of its own, the tier's counts (`metering tier list`).")
    elif count:
        say(f"{counted(count, 'org')} with prices of their own: `metering tier list --orgs` shows them.")
