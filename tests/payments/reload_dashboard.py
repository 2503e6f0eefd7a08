"""The steps of the walk over reloads that banks, Stripe and operators of its dashboard take."""

from contextlib import suppress

import stripe
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from metering.payments.unbooked import book_payment
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.payments_walk import OPERATOR, SETTLEMENTS
from tests.payments.reload_walk import CRASH, CREATE, DECLINES, FAULTS, OPERATIONS, ReloadWalk


class Dashboard(ReloadWalk):
    """What happens at Stripe without us."""

    @precondition(lambda self: self.methods)
    @rule(which=st.integers(0, 9), heard=st.booleans(), crash=CRASH)
    def detach(self, which: int, heard: bool, crash: int | None) -> None:
        method = self.methods.pop(which % len(self.methods))
        with suppress(StripeError):  # with its customer it was detached before, of which no event tells
            self.world.sandbox.detach(method)
        heard = heard and bool(self._events("payment_method.detached"))
        if heard:
            (event, *_) = self._events("payment_method.detached")[::-1]
            self._do(lambda: self._handle(event), crash, customer_acts=True)

    @precondition(lambda self: self.model.card is not None)
    @rule(code=st.sampled_from([*DECLINES, None, None]), slow=st.booleans())
    def bank(self, code: str | None, slow: bool) -> None:
        method = self.world.account().default_payment_method_id
        assert method is not None
        if code is None:
            self.world.sandbox.mend_card(method)
            self.world.sandbox.slow_card(method, slow=slow)
        else:
            self.world.sandbox.fail_card(method, decline_code=code)

    @rule(succeeds=st.booleans())
    def slow_banks_decide(self, succeeds: bool) -> None:
        for each in self._intents("processing"):
            self.world.sandbox.finish_processing(each["id"], succeeds=succeeds)

    @rule(
        kind=st.sampled_from(FAULTS),
        operation=st.sampled_from(OPERATIONS),
        count=st.sampled_from([1, 2, 3, 6]),
    )
    def fault(self, kind: RequestFault, operation: str, count: int) -> None:
        if kind is RequestFault.CARD_ERROR:
            operation = CREATE  # nothing else is declined
        self.world.sandbox.set_fault(kind, operation=operation, count=count)

    @rule()
    def no_more_faults(self) -> None:
        self.world.sandbox.clear_faults()

    @rule(which=st.integers(0, 9), part=st.sampled_from([None, 1, 399]), dispute=st.booleans())
    def money_back(self, which: int, part: int | None, dispute: bool) -> None:
        paid = self._intents("succeeded")
        if paid:
            intent_id = paid[which % len(paid)]["id"]
            try:
                if dispute:
                    self.world.sandbox.open_dispute(intent_id, amount_cents=part)
                else:
                    self.world.sandbox.refund(intent_id, amount_cents=part)
            except StripeError:
                return  # nothing is left to take

    @precondition(lambda self: self.methods)
    @rule(which=st.integers(0, 9), heard=st.booleans(), crash=CRASH)
    def update_card(self, which: int, heard: bool, crash: int | None) -> None:
        """Its bank issues a card anew, with another expiry."""
        method = self.methods[which % len(self.methods)]
        held = self.world.sandbox._store.peek(method)
        assert held is not None
        if held["customer"] is None:
            return
        self.world.sandbox.update_card(method, exp_year=held["card"]["exp_year"] + 1)
        if heard:
            (event, *_) = self._events("payment_method.automatically_updated")[::-1]
            self._do(lambda: self._handle(event), crash)

    @rule(settlement=SETTLEMENTS)
    def settle_in(self, settlement: tuple[str, float, bool]) -> None:
        """The account settles in another currency, or the rate has moved: nothing to any org."""
        currency, exchange_rate, fee_apart = settlement
        self.world.sandbox.set_settlement(currency, exchange_rate=exchange_rate, fee_apart=fee_apart)

    @rule()
    def delete_customer(self) -> None:
        """Somebody deletes the org's customer; the next charge finds it out, or whoever saves a card."""
        with suppress(StripeError):  # he is deleted already
            self.world.sandbox.delete_customer(self.world.account().stripe_customer_id or "")

    @rule(cents=st.sampled_from([500, 3_000]))
    def pay_in_dashboard(self, cents: int) -> None:
        """Somebody takes a payment by hand: it is no reload, and nobody's before it is booked."""
        before = {each["id"] for each in self._intents()}
        with suppress(StripeError):
            self.world.sandbox.pay_in_dashboard(self.world.account().stripe_customer_id or "", cents)
        self.dashboard |= {each["id"] for each in self._intents()} - before

    @precondition(lambda self: self.dashboard)
    @rule(which=st.integers(0, 9), crash=CRASH)
    def book(self, which: int, crash: int | None) -> None:
        """An operator books one of them, perhaps again."""
        paid = sorted(each["id"] for each in self._intents("succeeded") if each["id"] in self.dashboard)
        if paid:
            self._do(
                lambda: book_payment(self.world.payments, 1, paid[which % len(paid)], "by hand", OPERATOR),
                crash,
            )

    @rule(
        which=st.integers(0, 9),
        other=st.integers(0, 9),
        how=st.sampled_from(["another attempt", "no attempt", "another org", "a top-up", "swap"]),
    )
    def edit_metadata(self, which: int, other: int, how: str) -> None:
        """Somebody edits what Stripe shows of a charge of ours: nothing may follow."""
        ours = [each for each in self._intents() if each["id"] not in self.dashboard]
        if not ours:
            return
        intent, another = ours[which % len(ours)], ours[other % len(ours)]
        metadata = {
            "another attempt": {"attempt_id": another["metadata"].get("attempt_id", "")},
            "no attempt": {"attempt_id": "", "org_id": "", "attempt_kind": ""},
            "another org": {"org_id": "2"},
            "a top-up": {"attempt_kind": "top_up"},
            "swap": dict(another["metadata"]),
        }[how]
        if how == "swap":
            self._edit(another["id"], dict(intent["metadata"]))
        self._edit(intent["id"], metadata)

    def _edit(self, intent_id: str, metadata: dict[str, str]) -> None:
        held = self.world.sandbox._store.peek(intent_id)
        assert held is not None
        self.edited.setdefault(intent_id, dict(held["metadata"]))
        while True:  # faults that are meant for us meet him as well, and he tries again
            with suppress(stripe.StripeError):
                self.world.stripe.v1.payment_intents.update(intent_id, {"metadata": metadata})
                return
