"""`metering tier`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from metering.console.errors import CommandError
from metering.console.output import JsonOption, add_row, say, show_json, show_list, show_page, table
from metering.console.values import time_value
from metering.rules.times import format_time

if TYPE_CHECKING:
    from db.ledger.prices import SetPrice
    from metering.rules.pricing import Price

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Set what a minute costs, and list prices."
)


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tier, such as bolt.", show_default=False)],
    usd_per_minute: Annotated[
        str,
        typer.Argument(
            metavar="USD_PER_MINUTE",
            help="USD per minute, at most 6 decimals, such as 0.08.",
            show_default=False,
        ),
    ],
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
    restored: Annotated[
        bool,
        typer.Option(
            "--restored",
            help="After a restore: set again a price that the backup doesn't know, with its own time in --from. It may be past, "
            "as long as no call of that tier and time is billed.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Set a tier's price; a tier that isn't there yet is made.

    Calls are priced with what was in force when they started, so a later price never changes what is billed already.
    """
    from db.ledger.prices import set_price
    from db.operators.log import log_action
    from db.postgres.clock import read_clock
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.rules.money import parse_usd
    from metering.rules.pricing import MAX_MINIMUM_S, Price, parse_increment

    first_s, next_s = _parsed("increment", parse_increment, increment)
    rate_microusd = _parsed("USD_PER_MINUTE", parse_usd, usd_per_minute)
    connect_fee_microusd = _parsed("connect-fee", parse_usd, connect_fee)
    if not 0 <= minimum <= MAX_MINIMUM_S:
        raise CommandError(f"minimum: must be from 0 to {MAX_MINIMUM_S} seconds.")
    start = None if in_force_from is None else time_value("from", in_force_from)
    if restored and start is None:
        raise CommandError(
            "restored: say with --from since when the price was in force (`metering tier list` showed it)."
        )
    try:
        price = Price(name, start, rate_microusd, first_s, next_s, minimum, connect_fee_microusd)
    except ValueError as error:
        raise CommandError(f"{error}.") from error
    with open_database(command="tier set") as engine:
        actor = require_operator(engine, "tier set")
        with transaction(engine) as connection:
            done = set_price(connection, price, lambda: read_clock(connection), restored=restored)
            if done.changed:
                log_action(connection, actor, "tier set", subject=name, details=_details(done))
    if as_json:
        following = None if done.followed_by is None else _json(done.followed_by)
        show_json({**_json(done.price), "changed": done.changed, "followed_by": following})
    else:
        say(_sentence(done.price, changed=done.changed))
        if done.followed_by is not None:
            say(
                f"Another price follows: tier {_costs(done.followed_by)}. It was set before, and stays"
                " (`metering tier list` shows all)."
            )


def _parsed(name: str, parse: Callable[[str], T], text: str) -> T:
    """What `parse` makes of `text`; its ValueError says the rule, and this the name."""
    try:
        return parse(text)
    except ValueError as error:
        raise CommandError(f"{name}: {error}.") from error


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List every price, past, present and to come, by tier and date."""
    from db.ledger.prices import list_prices
    from metering.console.connections import open_database

    with open_database(command="tier list") as engine, engine.connect() as connection:
        prices = list_prices(connection)
    if as_json:
        show_list([_json(price) for price in prices], len(prices))
        return
    shown = table("tier", ">USD per minute", "increment", ">minimum s", ">connect fee USD", "in force from")
    for price in prices:
        fields = _json(price)
        add_row(
            shown,
            [
                price.tier,
                fields["usd_per_minute"],
                fields["increment"],
                price.minimum_s,
                fields["connect_fee_usd"],
                _since(price),
            ],
        )
    show_page(shown, "price", offset=0, total=len(prices))


def _json(price: "Price") -> dict[str, Any]:
    """A price as JSON: money as text, because a JSON number may become a float."""
    from metering.rules.money import format_microusd

    return {
        "tier": price.tier,
        "usd_per_minute": format_microusd(price.rate_microusd_per_minute),
        "increment": f"{price.increment_first_s}/{price.increment_next_s}",
        "minimum_seconds": price.minimum_s,
        "connect_fee_usd": format_microusd(price.connect_fee_microusd),
        "in_force_from": price.in_force_from,
    }


def _details(done: "SetPrice") -> dict[str, Any]:
    """What the log keeps of a price that was set."""
    fields = _json(done.price)
    start = done.price.in_force_from
    return {key: fields[key] for key in fields if key != "tier"} | {
        "in_force_from": None if start is None else format_time(start)
    }


def _since(price: "Price") -> str:
    return "ever" if price.in_force_from is None else format_time(price.in_force_from)


def _sentence(price: "Price", *, changed: bool) -> str:
    return (
        f"Tier {_costs(price)}." if changed else f"Nothing changed: tier {_costs(price)}, as was set before."
    )


def _costs(price: "Price") -> str:
    fields = _json(price)
    extras = [f"in increments of {fields['increment']} s"]
    if price.minimum_s:
        extras.append(f"at least {price.minimum_s} s")
    if price.connect_fee_microusd:
        extras.append(f"plus ${fields['connect_fee_usd']} per call")
    since = "since ever" if price.in_force_from is None else f"from {format_time(price.in_force_from)} on"
    return f"{price.tier} costs ${fields['usd_per_minute']} per minute, {', '.join(extras)}, {since}"
