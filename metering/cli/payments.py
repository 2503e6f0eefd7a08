"""`metering payment`."""

from dataclasses import asdict
from typing import Annotated

import typer

from metering.console.errors import CommandError, quoted
from metering.console.output import JsonOption, add_row, say, show_json, show_list, show_page, table
from metering.console.values import MAX_INTENT_CHARS, MAX_REASON_CHARS, OrgArgument, id_value, text_value

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Payments that were made at Stripe by hand: list what isn't booked, and book it.",
)


@app.command("list")
def list_(
    unbooked: Annotated[
        bool, typer.Option("--unbooked", help="Payments that Stripe has taken and no org was credited with.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List payments at Stripe that are not booked, newest first: whose each is, and why.

    `unknown_intent`: its customer is the org's; `metering payment book` credits it. `unknown_customer`: no org has the customer;
    book it if you know whose it is. `not_settled`: the jobs book it when they hear of it. Others can't be booked as they are.
    """
    from metering.console.connections import open_database
    from metering.console.payments import open_command_stripe
    from metering.payments.stripe_failures import StripeFailure
    from metering.payments.unbooked import find_unbooked
    from metering.rules.money import format_usd
    from metering.rules.payments import CURRENCY

    if not unbooked:
        raise CommandError("Say --unbooked. Charges that we made are in `metering attempt list`.")
    with open_database(command="payment list") as engine, open_command_stripe() as stripe:
        try:
            found = find_unbooked(engine, stripe)
        except StripeFailure as failure:
            raise CommandError(f"Stripe can't be asked: {quoted(failure)}.") from failure
    if as_json:
        show_list([asdict(each) for each in found], len(found))
        return
    shown = table("payment", ">org", "customer", ">amount", "currency", "made", "why")
    for each in found:
        # Stripe counts some currencies without decimals.
        amount = format_usd(each.amount_cents) if each.currency == CURRENCY else each.amount_cents
        about = (each.payment_intent_id, each.org_id, each.customer_id, amount, each.currency)
        add_row(shown, [*about, each.created_at, each.reason.value])
    show_page(shown, "unbooked payment", offset=0, total=len(found))


@app.command("book")
def book(
    org: OrgArgument,
    payment_intent: Annotated[
        str, typer.Argument(metavar="PAYMENT_INTENT", help="Its id at Stripe, pi_...", show_default=False)
    ],
    reason: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Why, in words; the customer reads it as the description.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Credit an org with a payment that was made at Stripe by hand, once for ever.

    Refused for another org's customer, and for a payment without a customer, in another currency, or not paid in whole. A
    customer that no org has becomes this org's, for good. What went back to the card is taken off at once.
    """
    from metering.cli.gates import follow_gate
    from metering.console.operators import require_operator
    from metering.console.payments import open_command_payments
    from metering.payments.stripe_failures import StripeFailure
    from metering.payments.unbooked import BookingError, book_payment
    from metering.rules.money import format_usd

    id_value("ORG", org)
    text_value("PAYMENT_INTENT", payment_intent, max_chars=MAX_INTENT_CHARS)
    text_value("reason", reason, max_chars=MAX_REASON_CHARS)
    with open_command_payments("payment book") as payments:
        actor = require_operator(payments.engine, "payment book", org_id=org)
        try:
            done = book_payment(payments, org, payment_intent, reason, actor)
        except BookingError as error:
            raise CommandError(str(error)) from error
        except StripeFailure as failure:
            raise CommandError(
                f"Stripe can't be asked: {quoted(failure)}. The same command is safe to repeat."
            ) from failure
        from db.ledger.balances import read_balances

        (balance,) = read_balances(payments.engine, [org])
    follow_gate(balance)  # an earlier try may have ended before the gate
    if as_json:
        show_json({"org_id": org, "payment_intent_id": payment_intent, **asdict(done)})
        return
    amount = format_usd(done.amount_cents)
    if done.booked:
        say(
            f"Org {org} is credited with {amount} USD; its balance is {format_usd(balance.balance_cents)} USD."
        )
    else:
        say(
            f"Nothing changed: org {org} was credited with these {amount} USD before, by transaction {done.transaction_id}."
        )
    if done.customer_claimed:
        say(f"The customer who paid is org {org}'s from now on.")
