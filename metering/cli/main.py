"""The `metering` command."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from metering import __version__
from metering.cli import (
    attempts,
    calls,
    keys,
    operators,
    orgs,
    payments,
    rejected,
    reloads,
    stripe_events,
    tiers,
)
from metering.cli.adjust import adjust
from metering.cli.api import api
from metering.cli.audit import audit
from metering.cli.bench import bench
from metering.cli.chaos import chaos
from metering.cli.demo import demo
from metering.cli.jobs import jobs
from metering.cli.log import log
from metering.cli.meter import meter
from metering.cli.migrate import migrate
from metering.cli.push import push
from metering.cli.refund import refund
from metering.cli.reprice import reprice
from metering.cli.status import status
from metering.cli.stripe_sandbox import stripe_sandbox
from metering.cli.up import up
from metering.console.errors import explain
from metering.console.output import say, survive_any_terminal, warn


class Commands(TyperGroup):
    """All commands: where one fails for a reason that can happen to anyone, it says so in a sentence and ends with status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            warn(sentence)
            raise typer.Exit(1) from error


RUN = "Run"
SET_UP = "Set up"
CALLS = "Calls and balances"
LOOK = "Look"

app = typer.Typer(
    cls=Commands,
    name="metering",
    help="Prepaid call metering: call events in, exact debits out.",
    epilog="Settings come from the environment: METERING_DATABASE_URL and METERING_REDIS_URL; unset, the commands use the "
    "embedded servers under METERING_DATA_DIR (.metering), which `demo` and `up` start. STRIPE_API_KEY names a Stripe account; "
    "unset, the embedded database goes with a stand-in that charges nobody. METERING_OPERATOR holds your token as an "
    "operator, once there are any.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # its tracebacks may show values, and values may be secrets
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"metering {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""


app.command(rich_help_panel=RUN)(demo)
app.command(rich_help_panel=RUN)(up)
app.command(rich_help_panel=RUN)(api)
app.command(rich_help_panel=RUN)(meter)
app.command(rich_help_panel=RUN)(jobs)
app.command("stripe-sandbox", hidden=True)(stripe_sandbox)
app.command(rich_help_panel=SET_UP)(migrate)
app.add_typer(orgs.app, name="org", rich_help_panel=SET_UP)
app.add_typer(keys.app, name="key", rich_help_panel=SET_UP)
app.add_typer(tiers.app, name="tier", rich_help_panel=SET_UP)
app.add_typer(operators.app, name="operator", rich_help_panel=SET_UP)
app.command(rich_help_panel=CALLS)(push)
app.command(rich_help_panel=CALLS)(adjust)
app.add_typer(calls.app, name="call", rich_help_panel=CALLS)
app.command(rich_help_panel=CALLS)(refund)
app.command(rich_help_panel=CALLS)(reprice)
app.add_typer(payments.app, name="payment", rich_help_panel=CALLS)
app.add_typer(stripe_events.app, name="stripe-event", rich_help_panel=CALLS)
app.add_typer(rejected.app, name="rejected", rich_help_panel=CALLS)
app.add_typer(attempts.app, name="attempt", rich_help_panel=LOOK)
app.add_typer(reloads.app, name="reload", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(log)
app.command(rich_help_panel=LOOK)(status)
app.command(rich_help_panel=LOOK)(audit)
app.command(rich_help_panel=LOOK)(bench)
app.command(rich_help_panel=LOOK)(chaos)


def main() -> None:
    """Run the command that the command line names."""
    survive_any_terminal()
    app(prog_name="metering")
