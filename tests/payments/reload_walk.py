"""What all steps of the walk over reloads share: an org, workers that can be torn off, and a model that looks after each step."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from metering.payments.cards import create_setup_intent
from metering.payments.charges import process_attempt
from metering.payments.errors import PaymentError
from metering.payments.events import HANDLED, Source, handle, read_event
from metering.payments.settling import follow
from metering.payments.stripe_failures import StripeFailure
from metering.sandbox.stripe.faults import RequestFault
from metering.sandbox.stripe.values import Json, shown
from tests.payments.crashing import Crash
from tests.payments.reload_model import Model
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
CREATE: Final = "payment_intents.create"
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


class ReloadWalk(RuleBasedStateMachine):
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
        self.dashboard: set[str] = set()
        """PaymentIntents that somebody has made in the dashboard."""
        self.edited: dict[str, dict[str, str]] = {}
        """The metadata of PaymentIntents before somebody edited them."""
        self.restored = False
        self.top_ups_left = MOST_TOP_UPS

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

    def _intents(self, status: str | None = None) -> list[Json]:
        """PaymentIntents at Stripe, newest first."""
        with self.world.sandbox._store.work() as work:
            return [each for each in work.newest("payment_intent") if status in {None, each["status"]}]

    def _save_card(self, card: str) -> str:
        """A customer saves a card in his browser, which finds out too if he was deleted at Stripe; give the payment method."""
        made = create_setup_intent(self.world.payments, 1)
        method = self.world.sandbox.confirm_setup(made.setup_intent_id, card=card)
        self.methods.append(method)
        return method
