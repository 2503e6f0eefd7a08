"""A random walk over everything that can happen to an org's reloads, checked by a model after each step."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from metering.payments.charges import process_attempt
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.org_backup import OrgBackup
from tests.payments.payments_walk import ASTRAY
from tests.payments.reload_customers import Customers
from tests.payments.reload_dashboard import Dashboard
from tests.payments.reload_ending import Ending
from tests.payments.reload_model import Model
from tests.payments.reload_walk import (
    CRASH,
    LOST_ANSWERS,
    MOVES,
)
from tests.payments.reload_world import Site

MOST_LOST: Final = timedelta(days=20)
"""How old a backup is at the most: Stripe keeps the events that tell of what it doesn't know for 30 days."""


class ReloadMachine(Customers, Dashboard, Ending):
    """The walk: who works when, time, and restores."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.backup: tuple[OrgBackup, Model, datetime] | None = None

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

    @rule()
    def back_up(self) -> None:
        assert self.world.admin is not None
        self.backup = (OrgBackup(self.world.admin, 1), self.model.copied(), self.world.clock.at)

    @precondition(lambda self: self.backup is not None)
    @rule()
    def restore(self) -> None:
        """All roles are stopped, Postgres is brought back to an earlier time, and they are started again."""
        assert self.backup is not None
        rows, model, at = self.backup
        if self.world.clock.at - at > MOST_LOST:
            self.backup = None
            return
        if self.hand is not None:
            self.hand.tear_off()
            self._hand_has_acted()
        self.world.enqueued.clear()
        rows.restore()
        marks = self.model.marks  # what Stripe has made since the backup may have been edited since
        self.model = model.copied()
        self.model.marks.update(marks)
        self.model.restored()
        self.restored = True
        self.tally["restored"] += 1
        self._do(self._reconcile)
