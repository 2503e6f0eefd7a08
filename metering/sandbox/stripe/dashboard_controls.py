"""What operators do in Stripe's dashboard."""

from decimal import Decimal
from uuid import uuid4

from metering.sandbox.stripe import customers, payment_intents, payment_methods, refunds
from metering.sandbox.stripe.accounts import OpenedAccount, find_account, keys_kept, open_account, settle_in
from metering.sandbox.stripe.api_keys import ApiKeys
from metering.sandbox.stripe.settlement import Settlement
from metering.sandbox.stripe.store import Origin, Store
from metering.sandbox.stripe.values import PRIVATE, Json, new_id, plain


class DashboardControls:
    """The controls of the dashboard."""

    _store: Store
    _api_keys: ApiKeys

    def pay_in_dashboard(
        self,
        customer: str,
        amount_cents: int,
        *,
        payment_method: str | None = None,
        currency: str = "usd",
        description: str | None = None,
    ) -> Json:
        """Somebody takes a payment from a customer, of whose purpose no metadata tell. Returns the PaymentIntent.

        `payment_method` is one of the customer's; else the newest is taken, and where there is none a good card is typed in.
        Raises StripeError if the card is declined.
        """
        params: Json = {"amount": amount_cents, "currency": currency, "customer": customer}
        params |= {} if description is None else {"description": description}
        with self._store.work_on(customer, _clicked()) as work:
            newest = next(payment_methods.attached_to(work, customer), {"id": "pm_card_visa"})
            params["payment_method"] = newest["id"] if payment_method is None else payment_method
            return plain(payment_intents.create(work, params | {"confirm": True, "off_session": True}))

    def edit_metadata(self, payment_intent: str, *, metadata: dict[str, str]) -> Json:
        """Somebody edits the metadata of a payment; an empty text removes a name, and what isn't named stays."""
        with self._store.work_on(payment_intent, _clicked()) as work:
            return plain(payment_intents.update(work, {"metadata": metadata}, payment_intent))

    def refund(self, payment_intent: str, *, amount_cents: int | None = None) -> Json:
        """Somebody refunds a payment, or a part of it, in the dashboard."""
        amount = {} if amount_cents is None else {"amount": amount_cents}
        with self._store.work_on(payment_intent) as work:
            return plain(refunds.create(work, {"payment_intent": payment_intent, **amount}))

    def detach(self, payment_method: str) -> Json:
        """The payment method is taken from its customer, in the dashboard."""
        with self._store.work_on(payment_method) as work:
            return plain(payment_methods.detach(work, {}, payment_method))

    def delete_customer(self, customer: str) -> Json:
        """Somebody deletes a customer. His cards are detached, of which no event tells; all ids but his own stay."""
        with self._store.work_on(customer, _clicked()) as work:
            return plain(customers.delete(work, {}, customer))

    def set_settlement(
        self,
        currency: str = "usd",
        *,
        exchange_rate: float = 1.0,
        fee_apart: bool = False,
        account: str | None = None,
    ) -> None:
        """The account settles in this currency from now on: its balance transactions are in it, at this rate.

        With `fee_apart` a dispute's fee is a balance transaction of its own. `account` is another than the first.
        """
        with self._store.work() as work:
            settle_in(work, account, Settlement(currency, Decimal(str(exchange_rate)), fee_apart))

    def open_account(self, *, country: str = "US", currency: str = "usd") -> OpenedAccount:
        """Another account, with a key of its own: nothing of the first is there for it, nor the other way round."""
        with self._store.work() as work:
            opened = open_account(work, new_id("sk_test"), country, currency)
        self._api_keys.set_others(keys_kept(self._store))
        return opened

    def rotate_api_key(self, *, keep_old: bool = False, account: str | None = None) -> str:
        """A new API key, which is returned; the account's old ones get 401 from now on, unless they are kept.

        `account` is another than the first.
        """
        if account is None:
            return self._api_keys.rotate(keep_old=keep_old)
        with self._store.work() as work:
            held = work.edit(find_account(work, account))
            key = self._api_keys.rotate(keep_old=keep_old, account=account)
            held[PRIVATE]["api_keys"] = self._api_keys.of(account)
        return key


def _clicked() -> Origin:
    """A request of the dashboard: it bears a key of its own, and nobody else's."""
    return Origin(new_id("req", 14), str(uuid4()))
