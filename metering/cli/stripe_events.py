"""`metering stripe-event`."""

from typing import Annotated, Final

import typer

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
    warn,
)
from metering.console.values import MAX_REASON_CHARS, text_value

MAX_EVENT_CHARS: Final = 255

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Events of Stripe's that could not be handled: list them, try one again now, or dismiss it.",
)

EventArgument = Annotated[
    str, typer.Argument(metavar="EVENT", help="Its id at Stripe, evt_...", show_default=False)
]


@app.command("list")
def list_(limit: LimitOption = 50, offset: OffsetOption = 0, as_json: JsonOption = False) -> None:
    """List events of Stripe's that could not be handled, oldest first, each with why, and when it is tried again."""
    from db.payments.set_aside_events import list_set_aside
    from metering.console.connections import open_database

    with open_database(command="stripe-event list") as engine, engine.connect() as connection:
        events, total = list_set_aside(connection, limit=limit, offset=offset)
    if as_json:
        results = [
            {
                "event_id": each.id,
                "type": each.type,
                "created_at": each.created_at,
                "set_aside_at": each.set_aside_at,
                "tries": each.tries,
                "retry_at": each.retry_at,
                "error": each.error,
            }
            for each in events
        ]
        show_list(results, total)
        return
    shown = table("event", "type", "since", ">tries", "next try", "why")
    for each in events:
        add_row(
            shown,
            [each.id, each.type, each.set_aside_at, each.tries, each.retry_at, each.error],
            max_chars=MAX_SENTENCE_CHARS,
        )
    show_page(shown, "unhandled Stripe event", offset=offset, total=total)


@app.command()
def retry(
    event: Annotated[
        str | None, typer.Argument(metavar="[EVENT]", help="Its id at Stripe, evt_...", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Try one again now, or all, without waiting for its time. Exit status 1 if one can't be handled this time either."""
    from metering.console.operators import require_operator
    from metering.console.payments import open_command_payments
    from metering.payments.event_list import retry_now

    if (event is None) is not all_:
        raise CommandError("Name an event, or say --all: `metering stripe-event list` shows those there are.")
    if event is not None:
        text_value("EVENT", event, max_chars=MAX_EVENT_CHARS)
    with open_command_payments("stripe-event retry") as payments:
        actor = require_operator(payments.engine, "stripe-event retry")
        tried = retry_now(payments, event, actor)
    if event is not None and not tried:
        raise CommandError(_not_there(event))
    failed = {event_id: error for event_id, error in tried.items() if error is not None}
    if as_json:
        show_json(
            {"handled": [each for each in tried if each not in failed], "failed": failed},
        )
    else:
        say(f"Handled: {len(tried) - len(failed)}. Not handled this time either: {len(failed)}.")
        for event_id, error in failed.items():
            warn(f"{event_id}: {error}")
    if failed:
        raise typer.Exit(1)


@app.command()
def dismiss(
    event: EventArgument,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, in words; kept with your name.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Give up an event that will never be handled: what it tells of is not booked, and it is not tried again.

    If money has moved, book it yourself first: `metering payment book`, or `metering adjust`.
    """
    from db.payments.set_aside_events import dismiss as dismiss_event
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    text_value("EVENT", event, max_chars=MAX_EVENT_CHARS)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_database(command="stripe-event dismiss") as engine:
        actor = require_operator(engine, "stripe-event dismiss")
        with transaction(engine) as connection:
            dismissed = dismiss_event(connection, event, actor=actor, reason=reason)
    if not dismissed:
        raise CommandError(_not_there(event))
    if as_json:
        show_json({"event_id": event, "dismissed": True})
        return
    say(f"{event} is dismissed: it is not tried again, and what it tells of is not booked.")


def _not_there(event: str) -> str:
    return (
        f"There is no event {event} that waits: it was handled or dismissed, or never came; `metering stripe-event list` shows"
        " those that wait."
    )
