"""`metering reload`."""

from dataclasses import asdict
from typing import Annotated

import typer

from metering.cli.gates import follow_gate
from metering.console.errors import CommandError
from metering.console.output import (
    MAX_SENTENCE_CHARS,
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
from metering.console.values import MAX_REASON_CHARS, OrgArgument, id_value, text_value

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List orgs that aren't reloaded although they have it on, with what lifts it; resume a paused one.",
)


@app.command("list")
def list_(limit: LimitOption = 50, offset: OffsetOption = 0, as_json: JsonOption = False) -> None:
    """List orgs whose auto-reloads are paused or wait, with why, since when and what lifts it."""
    from db.attempts.reload_status import list_reload_stops
    from db.postgres.clock import read_clock
    from metering.console.connections import open_database
    from metering.console.reload_status import lifted_by

    with open_database(command="reload list") as engine, engine.connect() as connection:
        stops, total = list_reload_stops(connection, read_clock(connection), limit=limit, offset=offset)
    if as_json:
        show_list([asdict(each) | {"lifted_by": lifted_by(each)} for each in stops], total)
        return
    shown = table(">org", "state", "code", "since", "what lifts it")
    for each in stops:
        state = "paused" if each.paused else "waits"
        add_row(
            shown, [each.org_id, state, each.code, each.since, lifted_by(each)], max_chars=MAX_SENTENCE_CHARS
        )
    show_page(shown, "paused or waiting auto-reload", offset=offset, total=total)


@app.command()
def resume(
    org: OrgArgument,
    reason: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Why, in words: kept, with your user name.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Lift the pause of an org's auto-reloads, whatever it is for. If one is due, its card is charged at once."""
    from db.accounts.resumptions import NotPausedError, resume_reloads
    from db.ledger.balances import read_balances
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from workers.reload_follower import ReloadFollower

    id_value("ORG", org)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_database(command="reload resume") as engine:
        actor = require_operator(engine, "reload resume", org_id=org)
        try:
            with transaction(engine) as connection:
                pause, reloads = resume_reloads(connection, org, by=actor.name, reason=reason)
                log_action(
                    connection,
                    actor,
                    "reload resume",
                    org_id=org,
                    reason=reason,
                    details={"code": pause.code, "attempts": [str(each) for _, each in reloads.attempts]},
                )
        except NotPausedError as error:
            raise CommandError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
        (balance,) = read_balances(engine, [org])
        follow_gate(balance, lambda client: ReloadFollower(engine, client).follow(reloads))
    if as_json:
        show_json(
            {"org_id": org, "code": pause.code, "attempts": [str(each) for _, each in reloads.attempts]}
        )
        return
    made = " A reload is due, and is charged now." if reloads.attempts else ""
    say(f"Org {org} is reloaded again: its pause, {pause.code}, is lifted.{made}")
