"""`metering call`."""

from typing import Annotated

import typer

from metering.cli import lapsed_calls
from metering.console.errors import CommandError
from metering.console.output import (
    JsonOption,
    LimitOption,
    add_row,
    say,
    show_json,
    show_list,
    show_table,
    table,
)
from metering.console.values import OptionalOrgArgument, OrgArgument, id_value

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Tell one call's story, list an org's billed calls, and calls whose event has not come.",
)
app.command()(lapsed_calls.dismiss)


@app.command()
def show(
    org: OrgArgument,
    call_id: Annotated[int, typer.Argument(metavar="CALL_ID", help="The call's id.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Tell one call's story from what is stored: when it was pushed, what it cost and why, or why it could not be billed."""
    from db.ledger.call_story import read_call_story
    from metering.console.call_screen import show_story, story_json, unknown_call
    from metering.console.connections import open_database

    id_value("ORG", org)
    id_value("CALL_ID", call_id)
    with open_database(command="call show") as engine, engine.connect() as connection:
        story = read_call_story(connection, org, call_id)
        if story.debit is None and not story.rejected:
            raise CommandError(unknown_call(org, call_id))
        if as_json:
            show_json(story_json(org, call_id, story))
        else:
            show_story(org, call_id, story)


@app.command("list")
def list_(
    org: OptionalOrgArgument = None,
    limit: LimitOption = 50,
    before_id: Annotated[
        int | None,
        typer.Option(
            metavar="ID",
            help="Only those whose transaction's id is lower: the next page.",
            show_default=False,
        ),
    ] = None,
    lapsed: Annotated[
        bool,
        typer.Option(
            "--lapsed",
            help="Those whose time is over and whose event has not come, of one org or of all, in Redis.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List an org's billed calls, newest first; or lapsed calls, the longest lapsed first."""
    if lapsed:
        if before_id is not None:
            raise CommandError("before-id: is for billed calls; leave it out with --lapsed.")
        lapsed_calls.list_lapsed(org, limit=limit, as_json=as_json)
        return
    if org is None:
        raise CommandError("ORG: name the org, by its id; only with --lapsed it may be left out.")
    from db.ledger.transaction_list import PageOfList, TransactionFilter, list_transactions
    from db.models import Kind
    from metering.console.call_screen import listed_json
    from metering.console.connections import open_database
    from metering.rules.money import format_usd

    id_value("ORG", org)
    if before_id is not None:
        id_value("before-id", before_id)
    with open_database(command="call list") as engine:
        page = list_transactions(
            engine, org, TransactionFilter(kind=Kind.DEBIT), PageOfList(limit, before_id=before_id)
        )
    if as_json:
        show_list([listed_json(row) for row in page.results], page.total)
        return
    if not page.results:
        say("There are no billed calls.")
        return
    shown = table(">call", "ended", ">seconds", "tier", ">USD")
    for row in page.results:
        seconds = None if row.duration_us is None else f"{row.duration_us / 1_000_000:g}"
        add_row(shown, [row.call_id, row.ended_at, seconds, row.tier, format_usd(row.amount_cents)])
    show_table(shown)
    if len(page.results) == limit:
        say(
            f"{len(page.results)} of {page.total:,} in all; --before-id {page.results[-1].id} shows the next."
        )
