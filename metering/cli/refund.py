"""`metering refund`."""

from typing import Annotated

import typer

from metering.cli.gates import follow_gate
from metering.console.errors import CommandError, quoted
from metering.console.output import JsonOption, say, show_json
from metering.console.values import (
    MAX_INTENT_CHARS,
    MAX_KEY_CHARS,
    MAX_REASON_CHARS,
    OrgArgument,
    id_value,
    text_value,
)

MAX_CENTS = 99_999_999


def refund(
    org: OrgArgument,
    payment_intent: Annotated[
        str, typer.Argument(metavar="PAYMENT_INTENT", help="Its id at Stripe, pi_...", show_default=False)
    ],
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, in words: kept in the log.", show_default=False)
    ],
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="Any text of your own, for this org: the same key again refunds nothing again, and settles what an "
            "earlier try left open.",
            show_default=False,
        ),
    ],
    cents: Annotated[
        int | None,
        typer.Option(metavar="N", help="US cents to refund; all that is left if unset.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Refund a payment to the card that made it, once per key: at Stripe, and in the ledger when Stripe says so."""
    from db.ledger.balances import read_balances
    from db.payments.operator_refunds import RefundError
    from metering.console.operators import require_operator
    from metering.console.payments import open_command_payments
    from metering.payments.refunds import refund_payment
    from metering.payments.stripe_failures import StripeFailure
    from metering.rules.money import format_usd

    id_value("ORG", org)
    text_value("PAYMENT_INTENT", payment_intent, max_chars=MAX_INTENT_CHARS)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    text_value("key", key, max_chars=MAX_KEY_CHARS)
    if cents is not None and not 0 < cents <= MAX_CENTS:
        raise CommandError(f"cents: must be a whole number from 1 to {MAX_CENTS}.")
    with open_command_payments("refund") as payments:
        actor = require_operator(payments.engine, "refund", org_id=org)
        try:
            done = refund_payment(
                payments, actor, org, payment_intent, amount_cents=cents, reason=reason, key=key
            )
        except RefundError as error:
            raise CommandError(str(error)) from error
        except StripeFailure as failure:
            raise CommandError(
                f"What Stripe has done isn't known: {quoted(failure)}. Run the same command again, with the same key: nothing is"
                " refunded twice."
            ) from failure
        (balance,) = read_balances(payments.engine, [org])
    follow_gate(balance)
    made = done.refund
    if as_json:
        show_json(
            {
                "org_id": org,
                "payment_intent_id": payment_intent,
                "refund_id": made.id,
                "amount_cents": made.amount_cents,
                "status": made.status,
                "balance_cents": balance.balance_cents,
                "refunded": done.new,
            }
        )
    if not made.effective:
        raise CommandError(
            f"The refund {made.id} is {made.status} at Stripe: the money is not at the card, and the org has it back. See why in"
            " Stripe's dashboard; another refund needs another key."
        )
    if as_json:
        return
    amount, reached = format_usd(made.amount_cents), format_usd(balance.balance_cents)
    before = "" if done.new else "Nothing changed: this key has made it before. "
    say(
        f"{before}{amount} USD of {payment_intent} are refunded by {made.id}, {made.status} at Stripe; org {org}'s balance is"
        f" {reached} USD."
    )
