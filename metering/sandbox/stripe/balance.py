"""What Stripe holds: the balance, and the transactions that it is the sum of.

Transactions are in the account's settlement currency, whatever was charged in: `amount` is converted, `exchange_rate` says by how
much, and fees are in that currency too (docs.stripe.com/api/balance_transactions/object).
"""

from typing import Final

from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import EXPAND, LISTING, Hash, Text
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json, new_id

RETRIEVE: Final = Hash(EXPAND)
LIST: Final = Hash({**LISTING, "source": Text(), "type": Text(), "currency": Text()})

CHARGE_FEE_PER_MILLE: Final = 29
CHARGE_FEE_CENTS: Final = 30
DISPUTE_FEE_CENTS: Final = 1_500

_CATEGORIES: Final = {
    # what happened: its type, its category in reports
    "charge": ("charge", "charge"),
    "refund": ("refund", "refund"),
    "refund_failure": ("refund_failure", "refund_failure"),
    "dispute": ("adjustment", "dispute"),
    "dispute_reversal": ("adjustment", "dispute_reversal"),
    "dispute_fee": ("stripe_fee", "fee"),
}


def retrieve(work: Work, params: Json) -> Json:  # noqa: ARG001
    """The balance: the net of all transactions, fees included."""
    net: dict[str, int] = {work.settlement.currency: 0}
    for each in work.newest("balance_transaction"):
        net[each["currency"]] = net.get(each["currency"], 0) + each["net"]
    return {
        "object": "balance",
        "available": [
            {"amount": amount, "currency": currency, "source_types": {"card": amount}}
            for currency, amount in net.items()
        ],
        "connect_reserved": [{"amount": 0, "currency": currency} for currency in net],
        "livemode": False,
        "pending": [{"amount": 0, "currency": currency, "source_types": {"card": 0}} for currency in net],
    }


def retrieve_transaction(work: Work, params: Json, transaction_id: str) -> Json:  # noqa: ARG001
    """A balance transaction."""
    return work.find(transaction_id, "balance_transaction", "id", in_path=True)


def list_transactions(work: Work, params: Json) -> Json:
    """A page of balance transactions."""
    where = ("source", params["source"]) if "source" in params else None

    def wanted(each: Json) -> bool:
        return all(each[name] == params[name] for name in ("type", "currency") if name in params)

    newest = work.newest("balance_transaction", where)
    return page(work, "/v1/balance_transactions", params, newest, "balance_transaction", keep=wanted)


def record(
    work: Work, what: str, amount: int, *, source: str, description: str | None, currency: str = "usd"
) -> Json:
    """Write down that `amount` of `currency` came (or, negative, went) because of the object `source`."""
    kind, category = _CATEGORIES[what]
    settled, exchange_rate = work.settlement.convert(amount, currency)
    currency = work.settlement.currency
    fee = _fee(what, settled, apart=work.settlement.fee_apart)
    fee_description = "Dispute fee" if what == "dispute" else "Stripe processing fees"
    return work.add(
        {
            "id": new_id("txn"),
            "object": "balance_transaction",
            "amount": settled,
            "available_on": work.now,
            "balance_type": "payments",
            "created": work.now,
            "currency": currency,
            "description": description,
            "exchange_rate": exchange_rate,
            "fee": fee,
            "fee_details": [
                {
                    "amount": fee,
                    "application": None,
                    "currency": currency,
                    "description": fee_description,
                    "type": "stripe_fee",
                }
            ]
            if fee
            else [],
            "net": settled - fee,
            "reporting_category": category,
            "source": source,
            "status": "available",
            "type": kind,
        }
    )


def record_dispute(work: Work, dispute: Json) -> list[Json]:
    """Write down that a dispute takes its money: the transactions that the dispute lists from then on."""
    source, charge = dispute["id"], dispute["charge"]
    taken = record(
        work,
        "dispute",
        -dispute["amount"],
        source=source,
        description=f"Chargeback withdrawal for {charge}",
        currency=dispute["currency"],
    )
    if not work.settlement.fee_apart:
        return [taken]
    fee = record(
        work,
        "dispute_fee",
        -DISPUTE_FEE_CENTS,
        source=source,
        description=f"Dispute fee for {charge}",
        currency=work.settlement.currency,
    )
    return [taken, fee]


def _fee(what: str, amount: int, *, apart: bool) -> int:
    """What Stripe keeps of it: a consumer that books `net` where it should book `amount` must be found out."""
    if what == "charge":
        return (amount * CHARGE_FEE_PER_MILLE + 500) // 1_000 + CHARGE_FEE_CENTS
    return DISPUTE_FEE_CENTS if what == "dispute" and not apart else 0
