"""`metering adjust`."""

from typing import Annotated

import typer

from metering.cli.gates import follow_gate
from metering.console.errors import CommandError
from metering.console.output import JsonOption, say, show_json
from metering.console.values import MAX_KEY_CHARS, MAX_REASON_CHARS, OrgArgument, id_value, text_value


def adjust(
    org: OrgArgument,
    cents: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="US cents to add; negative to take away.",
            show_default=False,
        ),
    ],
    reason: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Why, in words; the customer reads it as the description.",
            show_default=False,
        ),
    ],
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="Any text of your own, for this org: the same key again adjusts the org nothing again. "
            "Another org's keys are its own.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Correct an org's balance, once per key."""
    from db.ledger.adjustments import adjust as adjust_balance
    from db.ledger.balances import read_balances
    from db.operators.log import log_action
    from db.postgres.engine import transaction
    from metering.console.connections import open_database
    from metering.console.operators import require_operator
    from metering.rules.money import format_usd
    from workers.reload_follower import ReloadFollower

    id_value("ORG", org)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    text_value("key", key, max_chars=MAX_KEY_CHARS)
    with open_database(command="adjust") as engine:
        actor = require_operator(engine, "adjust", org_id=org)
        try:
            with transaction(engine) as connection:
                done = adjust_balance(connection, org, amount_cents=cents, reason=reason, key=key)
                if done.change is not None:
                    log_action(
                        connection,
                        actor,
                        "adjust",
                        org_id=org,
                        subject=key,
                        reason=reason,
                        details={
                            "amount_cents": cents,
                            "transaction_id": done.transaction_id,
                            "balance_after_cents": done.balance_after_cents,
                        },
                    )
        except ValueError as error:
            raise CommandError(str(error)) from error
        if done.change is not None:
            balance = done.change.balance
        else:  # an earlier try may have ended between its commit and the gate
            (balance,) = read_balances(engine, [org])
        follow_gate(balance, lambda client: ReloadFollower(engine, client).follow(done.reloads))
    if as_json:
        show_json(
            {
                "org_id": org,
                "transaction_id": done.transaction_id,
                "amount_cents": done.amount_cents,
                "balance_after_cents": done.balance_after_cents,
                "adjusted": done.change is not None,
            }
        )
        return
    amount, reached = format_usd(done.amount_cents), format_usd(done.balance_after_cents)
    if done.change is None:
        say(f"Nothing changed: key {key} adjusted org {org} by {amount} USD before, to {reached} USD.")
    else:
        say(f"Org {org} is adjusted by {amount} USD; its balance is {reached} USD.")
