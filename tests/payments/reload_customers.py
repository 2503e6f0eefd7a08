"""The steps of the walk over reloads that the customer takes, and who answers him: calls, settings, cards, top-ups."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from db.accounts.resumptions import NotPausedError, resume_reloads
from db.postgres.engine import transaction
from metering.payments.cards import set_default_payment_method
from metering.payments.settling import follow
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.payments_walk import SETTLEMENTS
from tests.payments.reload_walk import (
    AMOUNTS,
    CARDS,
    CRASH,
    DECLINES,
    LIMITS,
    LOST_ANSWERS,
    MINIMUMS,
    TOP_UP,
    ReloadWalk,
)


class Customers(ReloadWalk):
    """What the org does, or what is done for it."""

    @initialize(
        balance=st.sampled_from([0, 1_000, 6_000]),
        minimum=st.sampled_from(MINIMUMS),
        amount=st.sampled_from(AMOUNTS),
        limit=st.sampled_from(LIMITS),
        settlement=SETTLEMENTS,
    )
    def begin(
        self,
        balance: int,
        minimum: int,
        amount: int,
        limit: int | None,
        settlement: tuple[str, float, bool],
    ) -> None:
        """With a card, mostly with money, and enabled."""
        currency, exchange_rate, fee_apart = settlement
        self.world.sandbox.set_settlement(currency, exchange_rate=exchange_rate, fee_apart=fee_apart)
        if balance:
            self.world.adjust(balance)
        self.world.read_events()  # from here on the list is read: what was before the first time is none of ours
        self.methods.append(self.world.save_card())
        self.model.look(customer_acts=True)
        self._do(
            lambda: self.world.settings(
                enabled=True, minimum_cents=minimum, amount_cents=amount, monthly_limit_cents=limit
            ),
            customer_acts=True,
        )

    @rule(cents=st.sampled_from([1, 399, 999, 1_000, 2_500, 6_000]), calls=st.integers(1, 3), crash=CRASH)
    def call(self, cents: int, calls: int, crash: int | None) -> None:
        def bill() -> None:
            posted = self.world.post((1, cents) for _ in range(calls))
            self.stage.point()
            self._follow_posted(posted)

        self._do(bill, crash)

    @rule(
        code=st.sampled_from([None, *DECLINES]),
        lost=st.sampled_from([None, None, *LOST_ANSWERS]),
        worked_on=st.sampled_from([True, True, True, False]),
        crash=CRASH,
    )
    def cross(self, code: str | None, lost: RequestFault | None, worked_on: bool, crash: int | None) -> None:
        """A call that just crosses the minimum, with a bank that declines or not, and an answer that gets lost or not."""
        account = self.world.account()
        method = account.default_payment_method_id
        if method is not None and code is not None:
            self.world.sandbox.fail_card(method, decline_code=code)
        elif method is not None:
            self.world.sandbox.mend_card(method)
        if lost is not None:
            self.world.sandbox.set_fault(lost, operation="payment_intents.create", count=2)
            self.world.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.list", count=2)
        cents = max(account.balance_cents - max(account.auto_reload_minimum_cents, 1) + 1, 1)
        self.call(cents, 1, None)
        if worked_on and self.world.enqueued:
            self.work(crash)

    @rule(cents=st.sampled_from([-5_000, -1, 1, 700, 5_000]), crash=CRASH)
    def adjust(self, cents: int, crash: int | None) -> None:
        self._do(lambda: self.world.adjust(cents), crash)

    @precondition(lambda self: self.model.card is not None and self.top_ups_left)
    @rule(crash=CRASH)
    def top_up(self, crash: int | None) -> None:
        self.top_ups_left -= 1
        amount = TOP_UP + self.top_ups_left  # never the same: it would wait for the one that has crashed
        self._do(lambda: self.world.top_up(amount), crash)

    @rule(
        values=st.fixed_dictionaries(
            {},
            optional={
                "enabled": st.sampled_from([True, True, False]),
                "minimum_cents": st.sampled_from(MINIMUMS),
                "amount_cents": st.sampled_from(AMOUNTS),
                "monthly_limit_cents": st.sampled_from(LIMITS),
            },
        ),
        crash=CRASH,
    )
    def patch(self, values: dict[str, Any], crash: int | None) -> None:
        self._do(lambda: self.world.settings(**values), crash, customer_acts=True)

    @rule(card=st.sampled_from(CARDS), crash=CRASH)
    def save_card(self, card: str, crash: int | None) -> None:
        saved: list[str] = []
        self._do(lambda: saved.append(self._save_card(card)), customer_acts=True)
        for method in saved:
            self._set_default(method, crash)

    @precondition(lambda self: self.methods)
    @rule(which=st.integers(0, 9), crash=CRASH)
    def choose_card(self, which: int, crash: int | None) -> None:
        self._set_default(self.methods[which % len(self.methods)], crash)

    def _set_default(self, method: str, crash: int | None) -> None:
        self._do(
            lambda: set_default_payment_method(self.world.payments, 1, method), crash, customer_acts=True
        )

    @rule(cents=st.sampled_from([3_000, 9_000]), times=st.integers(2, 8))
    def run_away(self, cents: int, times: int) -> None:
        """So much is missing that each reload asks for the next."""
        self.call(cents, 1, None)
        for _ in range(times):
            if self.world.enqueued:
                self.work(None)

    @rule(times=st.integers(2, 6), minutes=st.sampled_from([0, 11, 70, 400]))
    def patch_by_a_cent(self, times: int, minutes: int) -> None:
        """A setting that really changes, again and again."""
        for _ in range(times):
            minimum = self.world.account().auto_reload_minimum_cents
            self.patch({"minimum_cents": minimum + 1}, None)
            if self.world.enqueued:
                self.work(None)
            self._move_to(self.world.clock.at + timedelta(minutes=minutes))

    @rule(crash=CRASH)
    def resume(self, crash: int | None) -> None:
        """An operator lifts a pause, if there is one."""

        def resume() -> None:
            with transaction(self.world.engine) as connection:
                _, reloads = resume_reloads(connection, 1, by="ann", reason="a test")
            follow(self.world.payments, reloads)

        with suppress(NotPausedError):
            self._do(resume, crash)
            self.tally["resumed"] += 1
