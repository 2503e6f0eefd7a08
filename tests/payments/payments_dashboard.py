"""The steps of the payments walk that customers, banks and operators of Stripe's dashboard take."""

from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from metering.payments.errors import PaymentError
from metering.payments.unbooked import book_payment
from metering.rules.payments import booked_attempt_id
from metering.sandbox.stripe.errors import StripeError
from tests.payments.payments_walk import INDEX, OPERATOR, OTHER_CRASHES, SETTLEMENTS, PaymentsWalk


class Dashboard(PaymentsWalk):
    """What happens at Stripe without us."""

    @precondition(lambda self: self.intents("requires_action"))
    @rule(which=INDEX, succeeds=st.booleans())
    def authenticate(self, which: int, succeeds: bool) -> None:
        for intent in self.picked(which, self.intents("requires_action")):
            self.world.sandbox.authenticate(intent["id"], succeeds=succeeds)

    @precondition(lambda self: self.intents("processing"))
    @rule(which=INDEX, succeeds=st.booleans())
    def finish_processing(self, which: int, succeeds: bool) -> None:
        for intent in self.picked(which, self.intents("processing")):
            self.world.sandbox.finish_processing(intent["id"], succeeds=succeeds)

    @precondition(lambda self: self.unfinished())
    @rule(which=INDEX)
    def cancel(self, which: int) -> None:
        """Somebody cancels a payment that nobody has finished."""
        for intent in self.picked(which, self.unfinished()):
            self.world.stripe.v1.payment_intents.cancel(intent["id"])

    @rule(mood=st.sampled_from(["declines", "wants authentication", "slow", "well", "well"]))
    def change_card(self, mood: str) -> None:
        """The bank of the default card thinks otherwise."""
        self.world.sandbox.mend_card(self.card)
        self.world.sandbox.slow_card(self.card, slow=mood == "slow")
        if mood == "declines":
            self.world.sandbox.fail_card(self.card, decline_code="insufficient_funds")
        elif mood == "wants authentication":
            self.world.sandbox.fail_card(self.card, decline_code="authentication_required")

    @rule(later=st.booleans())
    def update_card(self, later: bool) -> None:
        """The default card is issued anew, with another expiry."""
        held = self.world.sandbox._store.peek(self.card)
        assert held is not None
        if held["customer"] is not None:
            self.world.sandbox.update_card(self.card, exp_year=held["card"]["exp_year"] + 1)
            if not later:
                self.world.deliver(
                    [
                        each
                        for each in self.events()
                        if each["type"] == "payment_method.automatically_updated"
                    ][-1]
                )

    @rule(settlement=SETTLEMENTS)
    def settle_in(self, settlement: tuple[str, float, bool]) -> None:
        """The account settles in another currency, or the rate has moved: nothing to any org."""
        currency, exchange_rate, fee_apart = settlement
        self.world.sandbox.set_settlement(currency, exchange_rate=exchange_rate, fee_apart=fee_apart)

    @rule(saves_a_card=st.booleans())
    def delete_customer(self, saves_a_card: bool) -> None:
        """Somebody deletes the org's customer; the one who pays finds it out, and saves his cards anew, sooner or later."""
        customer = self.world.account(self.org_id).stripe_customer_id
        with suppress(StripeError):  # he is deleted already
            self.world.sandbox.delete_customer(customer or "")
        if saves_a_card:
            self.save_cards()

    @rule()
    def save_cards(self) -> None:
        self.steps += 1
        self.save_cards_anew()

    @rule(cents=st.sampled_from([1_000, 2_000, 700]), names=st.sampled_from(["nobody", "an attempt"]))
    def pay_in_dashboard(self, cents: int, names: str) -> None:
        """Somebody takes a payment by hand, and may copy the metadata of another one onto it."""
        customer = self.world.account(self.org_id).stripe_customer_id
        made = self.if_possible(self.world.sandbox.pay_in_dashboard, customer or "", cents)
        failed = {each["id"] for each in self.intents() if not each["metadata"]}
        self.dashboard |= failed  # a declined one too
        if made is not None and names == "an attempt":
            for other in self.intents(dashboard=False)[-1:]:
                self._edit(made["id"], other["metadata"])

    @precondition(lambda self: self.dashboard)
    @rule(which=INDEX, crash=OTHER_CRASHES)
    def book(self, which: int, crash: Any) -> None:
        """An operator books one of them, perhaps again."""
        paid = [each for each in self.intents("succeeded") if each["id"] in self.dashboard]
        with self.crashing(crash), suppress(PaymentError):
            for intent in self.picked(which, paid):
                book_payment(self.world.payments, self.org_id, intent["id"], "by hand", OPERATOR)

    @precondition(lambda self: self.intents())
    @rule(
        which=INDEX,
        other=INDEX,
        how=st.sampled_from(["another attempt", "no attempt", "another org", "a reload", "swap"]),
    )
    def edit_metadata(self, which: int, other: int, how: str) -> None:
        """Somebody edits what Stripe shows of a payment: nothing may follow."""
        for intent in self.picked(which, self.intents()):
            for another in self.picked(other, self.intents()):
                metadata = {
                    "another attempt": {"attempt_id": another["metadata"].get("attempt_id", "")},
                    "no attempt": {"attempt_id": "", "org_id": "", "attempt_kind": ""},
                    "another org": {"org_id": "1"},
                    "a reload": {"attempt_kind": "auto_reload"},
                    "swap": another["metadata"],
                }[how]
                if how == "swap":
                    self._edit(another["id"], intent["metadata"])
                self._edit(intent["id"], metadata)

    def _edit(self, intent_id: str, metadata: dict[str, str]) -> None:
        held = self.world.sandbox._store.peek(intent_id)
        assert held is not None
        self.edited.setdefault(intent_id, dict(held["metadata"]))
        self.world.stripe.v1.payment_intents.update(intent_id, {"metadata": metadata})

    def undo_edits(self) -> None:
        """Metadata are put back as `metering audit --stripe` asks for it: they name the attempt that has the payment."""
        attempts = {each.payment_intent_id: each for each in self.world.attempts(self.org_id)}
        for intent_id, before in self.edited.items():
            attempt = attempts.get(intent_id)
            named = {name: before.get(name, "") for name in ("org_id", "attempt_id", "attempt_kind")}
            if attempt is not None and attempt.id != booked_attempt_id(intent_id):
                named = {
                    "org_id": str(self.org_id),
                    "attempt_id": str(attempt.id),
                    "attempt_kind": attempt.kind.value,
                }
            self.world.stripe.v1.payment_intents.update(intent_id, {"metadata": named})
        self.edited.clear()

    @precondition(lambda self: self.intents("succeeded"))
    @rule(which=INDEX, amount_cents=st.none() | st.integers(1, 400))
    def refund(self, which: int, amount_cents: int | None) -> None:
        for intent in self.picked(which, self.intents("succeeded")):
            self.if_possible(self.world.sandbox.refund, intent["id"], amount_cents=amount_cents)

    @precondition(lambda self: self.of_ours("refund"))
    @rule(which=INDEX)
    def fail_refund(self, which: int) -> None:
        for refund in self.picked(which, self.of_ours("refund")):
            self.if_possible(self.world.sandbox.fail_refund, refund["id"])

    @precondition(lambda self: self.intents("succeeded"))
    @rule(which=INDEX, inquiry=st.booleans(), amount_cents=st.none() | st.just(250))
    def dispute(self, which: int, inquiry: bool, amount_cents: int | None) -> None:
        for intent in self.picked(which, self.intents("succeeded")):
            self.if_possible(
                self.world.sandbox.open_dispute, intent["id"], amount_cents=amount_cents, inquiry=inquiry
            )

    @precondition(lambda self: self.of_ours("dispute"))
    @rule(which=INDEX, how=st.sampled_from(["escalate_dispute", "win_dispute", "lose_dispute"]))
    def decide_dispute(self, which: int, how: str) -> None:
        for dispute in self.picked(which, self.of_ours("dispute")):
            self.if_possible(getattr(self.world.sandbox, how), dispute["id"])
