"""A random walk over everything that can happen to an org's reloads, checked by a model after each step."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from db.accounts.resumptions import NotPausedError, resume_reloads
from db.postgres.engine import transaction
from metering.payments.cards import set_default_payment_method
from metering.payments.charges import process_attempt
from metering.payments.errors import PaymentError
from metering.payments.events import HANDLED, Source, handle, read_event
from metering.payments.settling import follow
from metering.payments.stripe_failures import StripeFailure
from metering.sandbox.stripe.errors import StripeError
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.values import Json, shown
from tests.payments.crashing import Crash
from tests.payments.payments_walk import ASTRAY, SETTLEMENTS
from tests.payments.reload_model import LOST, Model
from tests.payments.reload_world import Site
from tests.payments.stage import Hand, Stage

START: Final = datetime(2026, 4, 28, 12, 0, tzinfo=UTC)
CARDS: Final = ("pm_card_visa", "pm_card_mastercard")
DECLINES: Final = ("generic_decline", "insufficient_funds", "stolen_card", "authentication_required")
AMOUNTS: Final = (400, 2_000, 5_000)
MINIMUMS: Final = (0, 1, 1_000, 3_000)
LIMITS: Final = (None, None, 0, 5_000, 9_999, 12_000, 20_000, 40_000)
LOST_ANSWERS: Final = (
    *(RequestFault.DROP_BEFORE, RequestFault.DROP_AFTER, RequestFault.ERROR_AFTER, RequestFault.ERROR_STORED),
    *(RequestFault.UNAUTHORIZED, RequestFault.RATE_LIMITED),
)
OPERATIONS: Final = (
    *("payment_intents.create", "payment_intents.cancel", "payment_intents.retrieve", "payment_intents.list"),
    *("payment_intents.*", "events.list", "refunds.list"),
)
FAULTS: Final = tuple(each for each in RequestFault if not each.value.startswith("hang"))
MOVES: Final = (
    *(timedelta(milliseconds=1), timedelta(seconds=6), timedelta(seconds=11), timedelta(seconds=61)),
    *(
        timedelta(minutes=15),
        timedelta(hours=1),
        timedelta(hours=6),
        timedelta(hours=23),
        timedelta(hours=24),
    ),
    *(timedelta(hours=26), timedelta(days=3), timedelta(days=9)),
)
CRASH: Final = st.one_of(st.none(), st.none(), st.integers(1, 12))
MOST_ENQUEUED: Final = 4
MOST_TOP_UPS: Final = 6
"""They are walked over elsewhere; here they only move the balance, and each that is left open costs time at every
reconciliation."""
TOP_UP: Final = 500
WAITS: Final = (
    *(timedelta(seconds=31), timedelta(minutes=2), timedelta(hours=1), timedelta(hours=2)),
    *[timedelta(hours=26)] * 6,
    *[timedelta(hours=1)] * 20,
)
"""How long after one turn the reconciler goes round again, until nothing is open. One charge may follow another."""


class ReloadMachine(RuleBasedStateMachine):
    """One org from its making to the day when nothing is open any more."""

    tally: ClassVar[Counter[str]] = Counter()
    """What has happened in all walks."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._open = ExitStack()
        self.stage = Stage()
        self._open.enter_context(self.stage.set_up())
        self.world = site.fresh(at=START)
        self.world.watched.after = self.stage.point
        self.model = Model(self.world)
        self.hand: Hand | None = None
        self.ending = False
        self.methods: list[str] = []
        self.top_ups_left = MOST_TOP_UPS

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
        customer = self.world.account().stripe_customer_id
        assert customer is not None
        method = self.world.sandbox.save_card(customer, card=card)
        self.methods.append(method)
        self._set_default(method, crash)

    @precondition(lambda self: self.methods)
    @rule(which=st.integers(0, 9), crash=CRASH)
    def choose_card(self, which: int, crash: int | None) -> None:
        self._set_default(self.methods[which % len(self.methods)], crash)

    def _set_default(self, method: str, crash: int | None) -> None:
        self._do(
            lambda: set_default_payment_method(self.world.payments, 1, method), crash, customer_acts=True
        )

    @precondition(lambda self: self.methods)
    @rule(which=st.integers(0, 9), heard=st.booleans(), crash=CRASH)
    def detach(self, which: int, heard: bool, crash: int | None) -> None:
        method = self.methods.pop(which % len(self.methods))
        self.world.sandbox.detach(method)
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

    @rule(which=st.integers(0, 30), times=st.integers(1, 2), crash=CRASH)
    def webhook(self, which: int, times: int, crash: int | None) -> None:
        """Any event that there ever was, late, again, out of order."""
        events = self._events()
        if events:
            event = events[-1 - which % len(events)]
            self._do(
                lambda: self._handle(*[event] * times),
                crash,
                customer_acts=event["type"] == "payment_method.detached",
            )

    @precondition(lambda self: self.world.enqueued)
    @rule(crash=CRASH)
    def work(self, crash: int | None) -> None:
        def work() -> None:
            for _ in range(MOST_ENQUEUED):
                if self.world.enqueued:
                    process_attempt(self.world.payments, *self.world.enqueued.pop(0))

        self._do(work, crash)

    @rule(crash=CRASH)
    def reconcile(self, crash: int | None) -> None:
        self._do(self._reconcile, crash)

    @precondition(lambda self: self.hand is None)
    @rule(
        hold_at=st.integers(1, 9),
        what=st.sampled_from(["attempt", "event", "reconciler"]),
        which=st.integers(0, 5),
    )
    def hold_another_worker(self, hold_at: int, what: str, which: int) -> None:
        """A second worker begins, and is held somewhere between two of its steps, while everything else goes on."""
        open_ones = [each for each in self.world.reloads() if each.open]
        events = self._events()
        if what == "attempt" and open_ones:
            attempt = open_ones[0]
            work: Callable[[], object] = lambda: process_attempt(self.world.payments, 1, attempt.id)  # noqa: E731
        elif what == "event" and events:
            event = events[-1 - which % len(events)]
            work = lambda: self._handle(event)  # noqa: E731
        else:
            work = self._reconcile
        self.hand = self.stage.start(work, hold_at=hold_at)
        self._hand_has_acted()

    @precondition(lambda self: self.hand is not None)
    @rule(hold_at=st.sampled_from([0, 0, 1, 2, 3]))
    def let_it_go_on(self, hold_at: int) -> None:
        assert self.hand is not None
        self.hand.go_on(hold_at=hold_at)
        self._hand_has_acted()

    @precondition(lambda self: self.hand is not None)
    @rule()
    def tear_it_off(self) -> None:
        assert self.hand is not None
        self.hand.tear_off()
        self._hand_has_acted()

    @rule(by=st.sampled_from(MOVES))
    def move_clock(self, by: timedelta) -> None:
        self._move_to(self.world.clock.at + by)

    @rule(by=ASTRAY)
    def go_astray(self, by: timedelta) -> None:
        """The clock of the machine that works is wrong, or right again: nothing may come of it."""
        self.world.go_astray(by)

    @rule(before=st.sampled_from([timedelta(0), timedelta(milliseconds=1), timedelta(minutes=1)]))
    def move_to_the_months_end(self, before: timedelta) -> None:
        at = self.world.clock.at
        turn = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
        while (turn - before) - self.world.clock.at > MOVES[-1]:
            self._move_to(self.world.clock.at + MOVES[-1])
        self._move_to(max(turn - before, self.world.clock.at))

    @rule(
        before=st.sampled_from([timedelta(milliseconds=1), timedelta(seconds=2), timedelta(seconds=40)]),
        late=st.sampled_from(
            [
                *(timedelta(milliseconds=1), timedelta(seconds=1), timedelta(seconds=20)),
                *(timedelta(minutes=2), timedelta(hours=22), timedelta(hours=24), timedelta(days=3)),
            ]
        ),
        lost=st.sampled_from([None, None, *LOST_ANSWERS]),
        worked_on=st.booleans(),
        crash=CRASH,
    )
    def turn_the_month_with_one_due(
        self,
        before: timedelta,
        late: timedelta,
        lost: RequestFault | None,
        worked_on: bool,
        crash: int | None,
    ) -> None:
        """One is made just before the month's end, and is sent late, or its answer is lost or comes late."""
        self.move_to_the_months_end(before)
        self.cross(None, lost, worked_on, crash)
        self._move_to(self.world.clock.at + late)
        self.reconcile(None)
        if self.world.enqueued:
            self.work(None)

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

    @precondition(lambda self: self.methods)
    @rule(which=st.integers(0, 9), heard=st.booleans(), crash=CRASH)
    def update_card(self, which: int, heard: bool, crash: int | None) -> None:
        """Its bank issues a card anew, with another expiry."""
        method = self.methods[which % len(self.methods)]
        held = self.world.sandbox._store.peek(method)
        assert held is not None
        self.world.sandbox.update_card(method, exp_year=held["card"]["exp_year"] + 1)
        if heard:
            (event, *_) = self._events("payment_method.automatically_updated")[::-1]
            self._do(lambda: self._handle(event), crash)

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

    def _move_to(self, at: datetime) -> None:
        days = (at - self.world.clock.at).days
        self.world.clock.at = at
        if (
            days > 1
        ):  # Stripe isn't away for so long, and keeps events for a month: by then somebody has looked
            self.world.sandbox.clear_faults()
        if days:
            self._do(self._reconcile)

    def _do(
        self, action: Callable[[], object], crash: int | None = None, *, customer_acts: bool = False
    ) -> None:
        """Do it as a process does; one that is torn off takes what it would have enqueued with it."""
        self.tally["steps"] += not self.ending
        self.stage.crash_in(crash)
        try:
            action()
        except Crash:
            self.world.enqueued.clear()
            self.tally["crashes"] += 1
        except (StripeFailure, PaymentError) as error:
            self.tally[type(error).__name__] += 1
        finally:
            self.stage.crash_in(None)
        self.model.look(customer_acts=customer_acts)

    def _hand_has_acted(self) -> None:
        self.tally["steps"] += not self.ending
        hand = self.hand
        if hand is not None and hand.done:
            self.hand = None
            if hand.error is not None and not isinstance(hand.error, Crash | StripeFailure | PaymentError):
                raise hand.error
        self.model.look(hand_acts=True)

    def _reconcile(self) -> None:
        self.world.process_due_attempts()
        try:
            self.world.read_events()
        except StripeFailure:
            self.tally["event list failed"] += 1
        self.world.ask_rule()

    def _follow_posted(self, posted: Any) -> None:
        follow(self.world.payments, posted.reloads)
        self.world.payments.gates.follow([posted.changes[1].balance], self.world.clock())

    def _events(self, *types: str) -> list[Json]:
        with self.world.sandbox._store.work() as work:
            found = list(work.newest("event"))
        return [each for each in found[::-1] if each["type"] in (types or HANDLED)]

    def _handle(self, *events: Json) -> None:
        for raw in map(shown, events):
            created_at = datetime.fromtimestamp(raw["created"], UTC)
            read = read_event(raw["id"], raw["type"], created_at, raw["livemode"], raw["data"])
            handle(self.world.payments, read, source=Source.WEBHOOK)

    def _intents(self, status: str) -> list[Json]:
        with self.world.sandbox._store.work() as work:
            return [each for each in work.newest("payment_intent") if each["status"] == status]

    def teardown(self) -> None:
        """Everything that is out comes to its end; then the org must be as it should."""
        try:
            if self.hand is not None:
                self.hand.go_on()
                self._hand_has_acted()
            if self.model.settings:
                self._end()
        finally:
            if self.hand is not None:
                self.hand.tear_off()
            self._open.close()

    def _end(self) -> None:
        world = self.world
        self.ending = True
        world.sandbox.clear_faults()
        self._raise_balance()
        self._drain()
        self._drain_pauses()
        self._assert_not_stranded()
        self._change_everything()
        account = world.account()
        assert account.balance_cents >= account.auto_reload_minimum_cents
        assert (world.pause(), world.skip_reason()) == (None, None)
        world.publish_overdue()
        world.mend_gates()
        world.assert_sound()
        self._assert_said_once()
        for each in world.attempts():
            self.tally[f"{each.kind.value} {each.status.value}"] += 1

    def _drain(self) -> None:
        """Let time pass until nothing is open."""
        world = self.world
        for wait in WAITS:
            for each in self._intents("processing"):
                world.sandbox.finish_processing(each["id"])
            self._do(self._reconcile)
            if not any(each.open for each in world.attempts()):
                break
            world.clock.at += wait
            world.enqueued.clear()
        assert [each for each in world.attempts() if each.open] == []
        world.clock.move(seconds=31)
        self._do(world.read_events)

    def _drain_pauses(self) -> None:
        """Two more days: what time lifts is lifted, and tried again."""
        for _ in range(3):
            self._raise_balance()
            self.world.clock.move(hours=25)
            self._drain()

    def _raise_balance(self) -> None:
        """So that few reloads suffice."""
        account = self.world.account()
        missing = account.auto_reload_minimum_cents - account.balance_cents
        if missing > AMOUNTS[0]:
            self._do(lambda: self.world.adjust(missing - 1))

    def _assert_not_stranded(self) -> None:
        self._do(self._reconcile)
        self._drain()
        if not self.model.due_now():
            return
        pause = self.world.pause()
        assert pause is not None, f"stranded: {self.world.account()}"
        assert pause.holds(self.world.clock.at), f"stranded: {pause}"
        assert self.model.paused_for_a_reason(), f"stranded for nothing: {pause}"
        self.tally[f"rests: {pause.lifts_with} {pause.code}"] += 1

    def _change_everything(self) -> None:
        """Another card that works, and other settings: whatever there was, now it goes on."""
        world = self.world
        world.clock.move(seconds=1)
        self._do(lambda: world.save_card("pm_card_amex"), customer_acts=True)
        account = world.account()
        minimum = max(account.balance_cents + 1, 4_321)
        self._do(
            lambda: world.settings(
                enabled=True, minimum_cents=minimum, amount_cents=4_999, monthly_limit_cents=None
            ),
            customer_acts=True,
        )
        self._raise_balance()
        self._drain()
        world.clock.move(minutes=10)  # where the pace has made the last one wait
        self._drain()

    def _assert_said_once(self) -> None:
        """Each end of an attempt by one signal; where a process died after saying it, perhaps twice, with the same id."""
        said: dict[tuple[str, str], set[int]] = {}
        for each in self.world.signals():
            if each["type"] != "auto_reload.skipped" and each.get("code") not in LOST:
                said.setdefault((each["attempt_id"], each["type"].removeprefix("auto_reload.")), set()).add(
                    each["id"]
                )
        expected = {
            (str(each.id), each.status.value)
            for each in self.world.reloads()
            if each.status.value in {"succeeded", "failed"}
        }
        assert said.keys() == expected
        assert all(len(ids) == 1 for ids in said.values())
        assert self.world.rows("SELECT * FROM pending_signals") == []
