"""The end of a walk over reloads: everything that is out comes to its end, and then the org must be as it should."""

from datetime import timedelta
from functools import partial

from metering.payments.cards import set_default_payment_method
from metering.payments.unbooked import book_payment, find_unbooked
from tests.payments.payments_walk import OPERATOR
from tests.payments.reload_model import LOST
from tests.payments.reload_walk import AMOUNTS, WAITS, ReloadWalk


class Ending(ReloadWalk):
    """How a walk ends."""

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
        world.go_astray(timedelta())
        self._raise_balance()
        self._drain()
        self._drain_pauses()
        self._book_all()
        self._assert_not_stranded()
        self._change_everything()
        self._undo_edits()
        account = world.account()
        assert account.balance_cents >= account.auto_reload_minimum_cents
        assert (world.pause(), world.skip_reason()) == (None, None)
        world.publish_overdue()
        world.mend_gates()
        world.assert_sound()
        if (
            not self.restored
        ):  # else it was said of attempts that Postgres knows no more, or not of those that it got back
            self._assert_said_once()
        for each in world.attempts():
            self.tally[f"{each.kind.value} {each.status.value}"] += 1

    def _book_all(self) -> None:
        """What somebody has taken by hand is listed as not booked, and an operator books it."""
        found = find_unbooked(self.world.engine, self.world.payments.stripe)
        assert {each.payment_intent_id for each in found} <= self.dashboard, found
        for intent in self._intents("succeeded"):
            if intent["id"] in self.dashboard:
                self._do(partial(book_payment, self.world.payments, 1, intent["id"], "by hand", OPERATOR))

    def _undo_edits(self) -> None:
        """Metadata are put back, as the audit asks for it."""
        for intent_id, before in self.edited.items():
            self.world.stripe.v1.payment_intents.update(intent_id, {"metadata": before})
        self.edited.clear()

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
        self._do(
            lambda: set_default_payment_method(world.payments, 1, self._save_card("pm_card_amex")),
            customer_acts=True,
        )
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
