"""`metering org suspend` and `metering org resume`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli.gates import follow_gate
from metering.console.errors import CommandError
from metering.console.output import JsonOption, say, show_json
from metering.console.values import MAX_REASON_CHARS, OrgArgument, id_value, text_value

if TYPE_CHECKING:
    from db.accounts.suspensions import Suspension


_Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="Why, in words: kept, with your name.", show_default=False)
]


def suspend(org: OrgArgument, reason: _Reason, as_json: JsonOption = False) -> None:
    """Close an org's gate, whatever its balance, and stop its auto-reloads. Running calls end by themselves, and are billed."""
    from db.accounts.suspensions import suspend_org
    from metering.rules.times import format_time

    done = _change("org suspend", suspend_org, org, reason)
    if as_json:
        show_json(_shape(done))
        return
    since = format_time(done.since)
    if not done.changed:
        say(f"Nothing changed: org {org} is suspended already, since {since}.")
        return
    charge = (
        " An auto-reload is on its way at Stripe: if it succeeds, it is credited, and the org stays suspended."
        if done.reload_on_its_way
        else " An auto-reload that had not been sent is cancelled."
        if done.reloads.cancelled
        else ""
    )
    say(f"Org {org} is suspended: no new call starts.{charge} `metering org resume` ends it.")


def resume(org: OrgArgument, reason: _Reason, as_json: JsonOption = False) -> None:
    """End an org's suspension: its balance alone opens or closes its gate. If a reload is due, its card is charged at once."""
    from db.accounts.suspensions import resume_org
    from metering.rules.money import format_usd

    done = _change("org resume", resume_org, org, reason)
    if as_json:
        show_json(_shape(done))
        return
    if not done.changed:
        say(f"Nothing changed: org {org} is not suspended.")
        return
    reload = " A reload is due, and is charged now." if done.reloads.attempts else ""
    say(
        f"Org {org} is resumed: its gate is {done.balance.gate_state}, at {format_usd(done.balance.balance_cents)} USD.{reload}"
    )


def _change(command: str, change: "Callable[..., Suspension]", org: int, reason: str) -> "Suspension":
    from db.accounts.suspensions import UnawareProgramsError
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from workers.reload_follower import ReloadFollower

    id_value("ORG", org)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_database(command=command) as engine:
        actor = require_operator(engine, command, org_id=org)
        try:
            with transaction(engine) as connection:
                done = change(connection, org)
                if done.changed:
                    log_action(
                        connection,
                        actor,
                        command,
                        org_id=org,
                        reason=reason,
                        details={
                            "state": done.balance.gate_state.value,
                            "balance_cents": done.balance.balance_cents,
                            "cancelled_reload": bool(done.reloads.cancelled),
                        },
                    )
        except UnawareProgramsError as error:
            raise CommandError(str(error)) from error
        # Also where nothing changed: an earlier try may have ended between its commit and the gate.
        follow_gate(done.balance, lambda client: ReloadFollower(engine, client).follow(done.reloads))
    return done


def _shape(done: "Suspension") -> dict[str, object]:
    return {
        "org_id": done.balance.org_id,
        "state": done.balance.gate_state.value,
        "balance_cents": done.balance.balance_cents,
        "changed": done.changed,
        "suspended_at": done.since if done.balance.suspended else None,
        "cancelled_reload": bool(done.reloads.cancelled),
        "reload_on_its_way": done.reload_on_its_way,
        "attempts": [str(each) for _, each in done.reloads.attempts],
    }
