"""`metering org set`."""

from typing import Annotated, Final

import typer

from metering.cli.gates import follow_gate
from metering.console.errors import CommandError
from metering.console.output import JsonOption, say, show_json
from metering.console.values import MAX_REASON_CHARS, OrgArgument, id_value, text_value
from metering.rules.gates import MAX_CONCURRENT_CALLS

NO_LIMIT: Final = "none"


def set_(
    org: OrgArgument,
    max_concurrent_calls: Annotated[
        str,
        typer.Option(
            "--max-concurrent-calls",
            metavar="N|none",
            help="How many calls that take holds may run at once.",
            show_default=False,
        ),
    ],
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why: kept, with your name.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set how many of an org's calls may run at once. Calls that run already go on."""
    from db.accounts.call_limits import limit_concurrent_calls
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator

    id_value("ORG", org)
    limit = _limit_value(max_concurrent_calls)
    if reason is not None:
        text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_database(command="org set") as engine:
        actor = require_operator(engine, "org set", org_id=org)
        with transaction(engine) as connection:
            done = limit_concurrent_calls(connection, org, limit)
            if done.changed:
                details = {"max_concurrent_calls": {"from": done.before, "to": limit}}
                log_action(connection, actor, "org set", org_id=org, reason=reason, details=details)
    # Also where nothing changed: an earlier try may have ended between its commit and the gate.
    follow_gate(done.balance)
    if as_json:
        show_json(
            {
                "org_id": org,
                "max_concurrent_calls": limit,
                "max_concurrent_calls_before": done.before,
                "changed": done.changed,
            }
        )
    elif not done.changed:
        say(f"Nothing changed: org {org} may run {_calls(limit)} at once already.")
    else:
        say(f"Org {org} may run {_calls(limit)} at once now; before, it was {_calls(done.before)}.")


def _limit_value(text: str) -> int | None:
    if text == NO_LIMIT:
        return None
    if text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= MAX_CONCURRENT_CALLS:
        return int(text)
    raise CommandError(
        f"max-concurrent-calls: must be a whole number from 1 to {MAX_CONCURRENT_CALLS}, or {NO_LIMIT};"
        " to let no call start, use `metering org suspend`."
    )


def _calls(limit: int | None) -> str:
    if limit is None:
        return "any number of calls"
    return "1 call" if limit == 1 else f"{limit:,} calls"
