"""What a demo says of charges: what customers did, what became of reloads, and whether Stripe holds what the ledger says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, text

from db.attempts.outbox import FAILED_SIGNAL, SUCCEEDED_SIGNAL
from db.postgres.engine import transaction
from metering.console.output import counted
from metering.rules.money import format_usd
from metering.sandbox.customers.cardholders import Cardholders
from metering.sandbox.customers.simulation import Customers
from metering.sandbox.telephony.signal_history import ReloadMessage

_MONEY = text("""
    SELECT org_id, stripe_customer_id, coalesce(sum(amount_cents) FILTER (WHERE kind = 'refund' OR kind = 'credit'), 0)::bigint
    FROM accounts LEFT JOIN transactions USING (org_id)
    WHERE org_id = ANY(:org_ids) AND stripe_customer_id IS NOT NULL GROUP BY org_id ORDER BY org_id
""")


@dataclass(frozen=True, slots=True)
class OrgMoney:
    """What came in by card for an org, less what went back, in cents."""

    org_id: int
    ledger_cents: int
    stripe_cents: int


def read_money(engine: Engine, cardholders: Cardholders, org_ids: Sequence[int]) -> list[OrgMoney]:
    """What ledger and Stripe say of each org that has a customer there."""
    with transaction(engine) as connection:
        rows = connection.execute(_MONEY, {"org_ids": list(org_ids)}).all()
    held = cardholders.held_cents([customer_id for _, customer_id, _ in rows])
    return [OrgMoney(org_id, ledger_cents, held[customer_id]) for org_id, customer_id, ledger_cents in rows]


def wrong_money(money: Sequence[OrgMoney], told_cents: Mapping[int, int]) -> list[str]:
    """Where ledger and Stripe disagree, or a customer was told of money that never came: a sentence for each org."""
    found = [
        f"Org {each.org_id}: the ledger has {each.ledger_cents} cents from its cards, Stripe holds {each.stripe_cents}."
        for each in money
        if each.ledger_cents != each.stripe_cents
    ]
    ledger_cents = {each.org_id: each.ledger_cents for each in money}
    found += [
        f"Org {org_id} was told that it topped up {cents} cents; the ledger has {ledger_cents.get(org_id, 0)} from its cards."
        for org_id, cents in told_cents.items()
        if ledger_cents.get(org_id, 0) < cents
    ]
    return found


def charges_sentences(customers: Customers, reloads: Sequence[ReloadMessage]) -> list[str]:
    """What happened at the customers' cards."""
    answers = customers.answers
    others = {name: answers[name] for name in answers if name not in {"succeeded", "requires_action"}}
    after_3ds = f", {customers.authenticated} after 3DS" if customers.authenticated else ""
    waiting = answers["requires_action"] - customers.authenticated
    top_ups = f"Top-ups over the API: {counted(answers['succeeded'] + customers.authenticated, 'time')}{after_3ds}, "
    top_ups += f"{format_usd(sum(customers.topped_up.values()))} USD"
    top_ups += "".join(f"; {number} {name}" for name, number in sorted(others.items()))
    top_ups += f"; {waiting} waiting for 3DS" if waiting else ""
    made = [each for each in reloads if each.type == SUCCEEDED_SIGNAL]
    declined = Counter(each.code or "?" for each in reloads if each.type == FAILED_SIGNAL)
    skipped = Counter(each.reason for each in reloads if each.reason is not None)
    sentence = f"Auto-reloads: {counted(len(made), 'time')}, {format_usd(sum(each.amount_cents for each in made))} USD"
    sentence += "".join(f"; {number} declined, {code}" for code, number in sorted(declined.items()))
    sentence += "".join(
        f"; {counted(number, 'org')} waiting, {why}" for why, number in sorted(skipped.items())
    )
    return [f"{top_ups}.", f"{sentence}."]
