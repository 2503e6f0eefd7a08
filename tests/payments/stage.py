"""Workers that can be torn off between any two of their steps, or held there while others go on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from db.ledger import post_calls
from db.payments import settlement
from db.postgres import engine
from db.postgres.engine import in_transaction
from metering.payments import accounts, cards, charges, events, settling, top_ups
from tests.payments.crashing import Crash

_REACHING: Final = (engine, post_calls, settlement, charges, settling, top_ups)
_FOLLOWING: Final = (accounts, cards, charges, events, settling)
LIMIT_S: Final = 30


class Stage:
    """Every step that a worker takes here passes `point`: each crash point, each answer of Stripe's, what follows a commit."""

    def __init__(self) -> None:
        self._hands = threading.local()
        self._crash_in: int | None = None

    def crash_in(self, points: int | None) -> None:
        """Tear off the test's own thread at the so-many-th point from now; None: don't."""
        self._crash_in = points

    def point(self, *_: object) -> None:
        """A step is over, and the next one has not begun."""
        hand = getattr(self._hands, "hand", None)
        if hand is not None:
            hand.point()
        elif self._crash_in is not None:
            self._crash_in -= 1
            if self._crash_in <= 0:
                self._crash_in = None
                raise Crash

    def start(self, work: Callable[[], object], *, hold_at: int) -> "Hand":
        """Have another worker do `work`, held at its so-many-th point."""
        return Hand(self, work, hold_at)

    def enter(self, hand: "Hand") -> None:
        """Make the calling thread this worker's."""
        self._hands.hand = hand

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """While all the project's crash points, and what follows its commits, are points of this stage."""
        follow = settling.follow

        def following(*args: Any) -> None:
            self.point()
            follow(*args)

        patches = [patch.object(module, "reach", self.point) for module in _REACHING]
        patches += [patch.object(module, "follow", following) for module in _FOLLOWING]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()


class Hand:
    """Another worker, in a thread of its own: at any time either it goes on, or the test does."""

    def __init__(self, stage: Stage, work: Callable[[], object], hold_at: int) -> None:
        self._left = hold_at
        self._torn_off = False
        self._held = threading.Event()
        self._may_go = threading.Event()
        self.done = False
        self.error: BaseException | None = None

        def run() -> None:
            stage.enter(self)
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.error = error
            self.done = True
            self._held.set()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert self._held.wait(LIMIT_S)

    def point(self) -> None:
        """Hold, if it is time: never inside a transaction, where everybody would have to wait for it."""
        if in_transaction():
            return
        self._left -= 1
        if self._left == 0:
            self._held.set()
            assert self._may_go.wait(LIMIT_S * 20)
            self._may_go.clear()
            if self._torn_off:
                raise Crash

    def go_on(self, *, hold_at: int = 0) -> None:
        """Let it go on, to its end or until it is held again."""
        if not self.done:
            self._left = hold_at
            self._held.clear()
            self._may_go.set()
            assert self._held.wait(LIMIT_S)

    def tear_off(self) -> None:
        """It ends where it is."""
        self._torn_off = True
        self.go_on()
        self._thread.join(LIMIT_S)
