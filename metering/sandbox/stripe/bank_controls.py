"""What cardholders do in their browsers, and banks in their back rooms."""

from metering.sandbox.stripe import disputes, payment_methods, refunds, setup_intents
from metering.sandbox.stripe.charges import successful_charge
from metering.sandbox.stripe.confirmations import authenticate, finish_processing
from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.payment_methods import find_method, update_automatically
from metering.sandbox.stripe.store import Store
from metering.sandbox.stripe.values import PRIVATE, Json, plain


class BankControls:
    """The controls of cardholders and their banks."""

    _store: Store

    def authenticate(self, payment_intent: str, *, succeeds: bool = True) -> Json:
        """The customer answers a 3DS challenge, or fails to. Returns the PaymentIntent, declined or not."""
        with self._store.work_on(payment_intent) as work:
            return plain(authenticate(work, payment_intent, succeeds=succeeds))

    def confirm_setup(
        self, setup_intent: str, *, card: str = "pm_card_visa", authenticates: bool = True
    ) -> str:
        """The customer enters a test card (a number or `pm_card_...`) for a SetupIntent, and answers a challenge if there is one.

        Returns the id of the payment method. Raises StripeError if the card isn't saved.
        """
        number = card.replace(" ", "").isdigit()
        data = {"number": card} if number else {"token": card}
        with self._store.work_on(setup_intent) as work:
            method = payment_methods.create(work, {"type": "card", "card": data})
            params = {"payment_method": method["id"], "return_url": "https://example.com"}
            intent = setup_intents.confirm(work, params, setup_intent)
            if intent["status"] == "requires_action":
                intent = setup_intents.authenticate_setup(work, setup_intent, succeeds=authenticates)
        if intent["status"] != "succeeded":
            error = intent["last_setup_error"]
            raise InvalidRequestError(error["message"], code=error["code"])
        return str(intent["payment_method"])

    def save_card(self, customer: str, *, card: str = "pm_card_visa") -> str:
        """A customer saves a test card for off-session use: a SetupIntent from its making to its success in one step."""
        with self._store.work_on(customer) as work:
            intent = setup_intents.create(work, {"customer": customer, "usage": "off_session"})
        return self.confirm_setup(intent["id"], card=card)

    def fail_card(self, payment_method: str, *, decline_code: str = "generic_decline") -> None:
        """The bank declines every charge of this payment method from now on, for this reason."""
        self._set_decline(payment_method, decline_code)

    def mend_card(self, payment_method: str) -> None:
        """The bank takes charges of this payment method again, as far as the card itself does."""
        self._set_decline(payment_method, None)

    def slow_card(self, payment_method: str, *, slow: bool = True) -> None:
        """The bank takes its time with this payment method: payments stay `processing` until `finish_processing`."""
        with self._store.work_on(payment_method) as work:
            work.edit(find_method(work, payment_method))[PRIVATE]["slow"] = slow

    def finish_processing(self, payment_intent: str, *, succeeds: bool = True) -> Json:
        """The bank of a slow card decides. Returns the PaymentIntent, declined or not."""
        with self._store.work_on(payment_intent) as work:
            return plain(finish_processing(work, payment_intent, succeeds=succeeds))

    def update_card(
        self,
        payment_method: str,
        *,
        exp_month: int | None = None,
        exp_year: int | None = None,
        card: str | None = None,
    ) -> Json:
        """The card's bank has issued it anew, and Stripe updates it in place: another date, or another `card` (number or token).

        Whoever failed because it had expired fails no more; a new number fails only as that card does.
        """
        with self._store.work_on(payment_method) as work:
            method = find_method(work, payment_method)
            return plain(update_automatically(work, method, card, exp_month, exp_year))

    def settle_refund(self, refund: str) -> Json:
        """A pending refund (card `pm_card_pendingRefund`) arrives."""
        with self._store.work_on(refund) as work:
            return plain(refunds.settle_refund(work, work.find(refund, "refund", "refund")))

    def fail_refund(self, refund: str, *, reason: str = "lost_or_stolen_card") -> Json:
        """The bank can't pay a refund out: the money comes back."""
        with self._store.work_on(refund) as work:
            return plain(refunds.fail_refund(work, work.find(refund, "refund", "refund"), reason))

    def open_dispute(
        self,
        payment_intent: str,
        *,
        amount_cents: int | None = None,
        inquiry: bool = False,
        reason: str = "fraudulent",
        currency: str | None = None,
    ) -> Json:
        """The cardholder disputes a payment, or a part of it; an inquiry takes no money yet.

        `currency` is the dispute's own, where it isn't the charge's; `amount_cents` is in it.
        """
        with self._store.work_on(payment_intent) as work:
            charge = successful_charge(
                work, work.find(payment_intent, "payment_intent", "payment_intent")["id"]
            )
            if charge is None:
                raise InvalidRequestError(f"{payment_intent} has taken no money.")
            return plain(
                disputes.open_dispute(
                    work, charge, amount=amount_cents, reason=reason, inquiry=inquiry, currency=currency
                )
            )

    def escalate_dispute(self, dispute: str) -> Json:
        """An inquiry becomes a real dispute, and takes the money."""
        with self._store.work_on(dispute) as work:
            return plain(disputes.escalate(work, work.find(dispute, "dispute", "dispute")))

    def win_dispute(self, dispute: str) -> Json:
        """The bank decides for us: the money comes back. An inquiry is just closed."""
        with self._store.work_on(dispute) as work:
            return plain(disputes.close_dispute(work, work.find(dispute, "dispute", "dispute"), won=True))

    def lose_dispute(self, dispute: str) -> Json:
        """The bank decides against us. An inquiry is just closed."""
        with self._store.work_on(dispute) as work:
            return plain(disputes.close_dispute(work, work.find(dispute, "dispute", "dispute"), won=False))

    def _set_decline(self, payment_method: str, decline_code: str | None) -> None:
        with self._store.work_on(payment_method) as work:
            method = work.edit(find_method(work, payment_method))
            method[PRIVATE]["decline"] = decline_code
