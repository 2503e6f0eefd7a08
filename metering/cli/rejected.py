"""`metering rejected`."""

import base64
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metering.cli.replays import ReasonOption, replay
from metering.console.errors import CommandError
from metering.console.output import (
    JsonOption,
    LimitOption,
    OffsetOption,
    add_row,
    counted,
    say,
    show_json,
    show_list,
    show_page,
    table,
    warn,
)
from metering.console.values import MAX_REASON_CHARS, id_value, text_value
from metering.rules.rejections import named_org

if TYPE_CHECKING:
    from db.models import RejectedEvent


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List events that could not be billed, push them again, or dismiss them.",
)


@app.command("list")
def list_(
    limit: LimitOption = 50,
    offset: OffsetOption = 0,
    reason: ReasonOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were replayed or dismissed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the rejected events that wait for somebody to mend the cause, oldest first."""
    from db.ledger.rejections import list_rejected
    from metering.console.connections import open_database

    with open_database(command="rejected list") as engine, engine.connect() as connection:
        events, total = list_rejected(
            connection, limit=limit, offset=offset, reason=reason, waiting_only=not all_
        )
    if as_json:
        show_list([_json(event) for event in events], total)
        return
    shown = table(
        ">id", "received", "reason", "detail", "event", *(("replayed", "dismissed") if all_ else ())
    )
    for event in events:
        raw = event.raw.decode("utf-8", "backslashreplace")
        ended = (event.replayed_at, event.dismissed_at) if all_ else ()
        add_row(shown, [event.id, event.received_at, event.reason, event.detail, raw, *ended])
    show_page(shown, "rejected event", offset=offset, total=total)


def _json(event: "RejectedEvent") -> dict[str, Any]:
    """A rejected event in the shape that docs/reference/commands.md#metering-rejected-list gives it."""
    raw: dict[str, str]
    try:
        raw = {"raw": event.raw.decode()}
    except UnicodeDecodeError:
        raw = {"raw_base64": base64.b64encode(event.raw).decode()}
    return {
        "id": event.id,
        "stream_id": event.stream_id,
        "reason": event.reason,
        "detail": event.detail,
        "received_at": event.received_at,
        **raw,
        "raw_length_bytes": event.raw_length_bytes,
        "replayed_at": event.replayed_at,
        "replayed_as": event.replayed_as,
        "dismissed_at": event.dismissed_at,
        "dismissed_reason": event.dismissed_reason,
    }


@app.command()
def dismiss(
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Which; their ids.", show_default=False)],
    reason: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Why it will never be billed, in words.", show_default=False),
    ],
    as_json: JsonOption = False,
) -> None:
    """Dismiss rejected events that will never be billed: they wait no longer, and stay listed with `--all`."""
    from db.ledger.rejections import DismissalError
    from db.ledger.rejections import dismiss as dismiss_event
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    for rejected_id in ids:
        id_value("ID", rejected_id)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    dismissed, refused = [], {}
    with open_database(command="rejected dismiss") as engine:
        actor = require_operator(engine, "rejected dismiss")
        for rejected_id in sorted(set(ids)):
            try:
                with transaction(engine) as connection:
                    event = dismiss_event(connection, rejected_id, reason)
                    if event is not None:
                        log_action(
                            connection,
                            actor,
                            "rejected dismiss",
                            org_id=named_org(event.raw),
                            subject=rejected_id,
                            reason=reason,
                        )
                dismissed.append(rejected_id)
            except DismissalError as error:
                refused[rejected_id] = str(error)
    if as_json:
        show_json(
            {
                "results": [{"id": rejected_id} for rejected_id in dismissed],
                "total": len(dismissed),
                "refused": [{"id": key, "detail": why} for key, why in refused.items()],
            }
        )
    else:
        for rejected_id, why in refused.items():
            warn(f"Event {rejected_id} was not dismissed: {why}.")
        say(f"{counted(len(dismissed), 'event')} dismissed.")
    if refused:
        raise CommandError(f"{counted(len(refused), 'event')} of those asked for not dismissed.")


app.command()(replay)
