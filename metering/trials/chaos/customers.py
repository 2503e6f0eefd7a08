"""Customers: they top up when they run low, with keys and without, pass 3DS or don't, and have cards that fail."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from http.client import HTTPException
from typing import Final

import msgspec

from metering.sandbox.customers.billing_api import Answer, CustomerApi
from metering.sandbox.stripe.remote import ControlError, control
from metering.trials.chaos.journal import Told, TopUp, Wanted

PATIENCE_S: Final = 120.0
"""How long a customer asks for one top-up before giving up."""
SET_UP_LIMIT_S: Final = 60.0
LOW_CENTS: Final = 700
FIRST_TOP_UP_CENTS: Final = 600
RELOAD_MINIMUM_CENTS: Final = 500
RELOAD_CENTS: Final = 1_500
RELOAD_LIMIT_CENTS: Final = 12_000
REFUND_CENTS: Final = 150
THINKS_S: Final = (0.5, 3.0)
BY_THE_WAY: Final = 0.15
"""How likely a customer tops up though there is money left: so that Stripe is busy whenever a fault strikes."""

BILLING: Final = "/v1/billing"


CARD_GONE: Final = frozenset({"payment_method_required", "invalid_payment_method"})
"""What is answered to who has no card any more: his customer was deleted at Stripe."""


class Habit(Enum):
    """What kind of customer an org is."""

    RELOADS = auto()
    RELOADS_WITH_LIMIT = auto()
    TOPS_UP_WITH_KEY = auto()
    TOPS_UP_WITHOUT_KEY = auto()
    MEETS_3DS = auto()
    HAS_A_BAD_CARD = auto()
    """Reloads and tops up, with a card that fails at times."""


RELOADING: Final = {Habit.RELOADS, Habit.RELOADS_WITH_LIMIT, Habit.HAS_A_BAD_CARD}
TOPPING_UP: Final = {
    Habit.TOPS_UP_WITH_KEY,
    Habit.TOPS_UP_WITHOUT_KEY,
    Habit.MEETS_3DS,
    Habit.HAS_A_BAD_CARD,
}


class SetUpError(Exception):
    """A customer could not save a card before the faults began. The text says what was answered."""


@dataclass(frozen=True, slots=True)
class CustomerContext:
    """What customers share."""

    stripe_url: str
    """The sandbox, for what they do in their browsers."""
    restores: Callable[[], int]
    """How often the database was restored so far."""
    jumps: Callable[[], int]
    """How often the clock was set forward by days."""
    wanted: Wanted


class Customer(threading.Thread):
    """One org's customer, seeded: his habits and choices are the same with the same seed, their moments the system's."""

    def __init__(
        self, org_id: int, habit: Habit, api: CustomerApi, surroundings: CustomerContext, seed: int
    ) -> None:
        super().__init__(name=f"customer {org_id}", daemon=True)
        self.error: BaseException | None = None
        """What ended it early."""
        self._org_id = org_id
        self._habit = habit
        self._api = api
        self._around = surroundings
        self._random = random.Random(f"customer {org_id} {seed}")  # noqa: S311 - to be repeatable, not secret
        self._stopped = threading.Event()
        self._top_ups = 0
        self._card = ""
        self._bad = False

    def stop(self) -> None:
        """Want nothing more; what is being asked for is asked for to the end. Does not wait."""
        self._stopped.set()

    def set_up(self) -> None:
        """Save a card, make it the default, enable reloads. Raises SetUpError."""
        if not self._save_card(self._usual_card()):
            raise SetUpError(f"org {self._org_id} could not save a card")
        if self._habit in RELOADING and not self._enable(True):
            raise SetUpError(f"org {self._org_id} could not enable auto-reload")

    def run(self) -> None:
        try:
            while not self._stopped.wait(self._random.uniform(*THINKS_S)):
                self._act()
        except BaseException as error:  # noqa: BLE001 - told at the end, with all else that is wrong
            self.error = error

    def _act(self) -> None:
        answer = self._api.ask("GET", BILLING)
        if answer is None or answer.status != HTTPStatus.OK:
            return
        if not answer.body["has_payment_method"]:  # the customer was deleted at Stripe
            self._save_card_anew()
            return
        low = answer.body["balance_cents"] < LOW_CENTS
        if self._habit in TOPPING_UP and (low or self._random.random() < BY_THE_WAY):
            self._top_up()
        if self._habit in RELOADING and self._random.random() < 0.05:  # noqa: PLR2004 - every twentieth time
            self._enable(False)
            self._enable(True)
        if self._habit is Habit.HAS_A_BAD_CARD and self._random.random() < 0.1:  # noqa: PLR2004 - every tenth time
            self._change_fortune()
        self._api.ask("GET", f"{BILLING}/transactions?limit=5")

    def _top_up(self) -> None:
        self._top_ups += 1
        top_up = self._around.wanted.add(TopUp(self._org_id, FIRST_TOP_UP_CENTS + self._top_ups))
        with_key = self._habit is Habit.TOPS_UP_WITH_KEY or (
            self._habit is not Habit.TOPS_UP_WITHOUT_KEY and self._random.random() < 0.5  # noqa: PLR2004
        )
        restores, jumps = self._around.restores(), self._around.jumps()
        answer = self._api.ask_until_answered(
            "POST",
            f"{BILLING}/top-up",
            {"amount_cents": top_up.amount_cents},
            key=f"top-up-{self._top_ups}" if with_key else None,
            limit_s=PATIENCE_S,
        )
        restored, jumped = restores != self._around.restores(), jumps != self._around.jumps()
        # A key outlives a restore, as long as Stripe keeps it.
        top_up.forgotten = (restored and jumped) if with_key else (restored or jumped)
        if answer is not None:
            self._take_note(top_up, answer)

    def _take_note(self, top_up: TopUp, answer: Answer) -> None:
        body = answer.body
        if answer.status == HTTPStatus.PAYMENT_REQUIRED:
            top_up.told = Told.DECLINED
        elif answer.status == HTTPStatus.CREATED and body["status"] == "succeeded":
            top_up.intent_id, top_up.told = body["payment_intent_id"], Told.SUCCEEDED
            if self._random.random() < 0.05:  # noqa: PLR2004 - every twentieth
                self._at_stripe("refund", payment_intent=top_up.intent_id, amount_cents=REFUND_CENTS)
        elif answer.status == HTTPStatus.CREATED and body["status"] == "requires_action":
            top_up.intent_id, top_up.told = body["payment_intent_id"], Told.CHALLENGED
            self._answer_challenge(top_up)
        elif body.get("code") in CARD_GONE:
            top_up.told = Told.DECLINED
            self._save_card_anew()
        else:
            self._around.wanted.complain(
                f"Org {self._org_id} was answered {answer.status} {msgspec.json.encode(body).decode()} to a top-up."
            )

    def _usual_card(self) -> str:
        return "pm_card_authenticationRequired" if self._habit is Habit.MEETS_3DS else "pm_card_visa"

    def _save_card_anew(self) -> None:
        if self._save_card(self._usual_card()):
            self._bad = False

    def _answer_challenge(self, top_up: TopUp) -> None:
        """Three of four pass; of the others one fails, and one just leaves."""
        mood = self._random.random()
        if mood < 0.75:  # noqa: PLR2004
            if self._at_stripe("authenticate", payment_intent=top_up.intent_id):
                top_up.told = Told.AUTHENTICATED
        elif mood < 0.9:  # noqa: PLR2004
            self._at_stripe("authenticate", payment_intent=top_up.intent_id, succeeds=False)

    def _change_fortune(self) -> None:
        """The card begins to fail; or the customer saves another one."""
        if not self._bad:
            reason = self._random.choice(("insufficient_funds", "generic_decline", "lost_card"))
            self._bad = self._at_stripe("fail_card", payment_method=self._card, decline_code=reason)
        elif self._save_card(self._random.choice(("pm_card_visa", "pm_card_mastercard"))):
            self._bad = False
            self._enable(True)

    def _enable(self, enabled: bool) -> bool:
        settings: dict[str, object] = {"auto_reload_enabled": enabled}
        if enabled:
            settings |= {
                "auto_reload_minimum_cents": RELOAD_MINIMUM_CENTS,
                "auto_reload_amount_cents": RELOAD_CENTS,
                "auto_reload_monthly_limit_cents": (
                    RELOAD_LIMIT_CENTS if self._habit is Habit.RELOADS_WITH_LIMIT else None
                ),
            }
        return self._done("PATCH", BILLING, settings) is not None

    def _save_card(self, card: str) -> bool:
        made = self._done("POST", f"{BILLING}/setup-intent")
        if made is None:
            return False
        try:
            method = control(
                self._around.stripe_url, "confirm_setup", setup_intent=made.body["setup_intent_id"], card=card
            )
        except (OSError, HTTPException, ControlError, msgspec.DecodeError):
            return False
        body = {"payment_method_id": method}
        if self._done("POST", f"{BILLING}/default-payment-method", body) is None:
            return False
        self._card = str(method)
        return True

    def _done(self, verb: str, path: str, body: dict[str, object] | None = None) -> Answer | None:
        """Have something done that may be asked for any number of times; None where it can't be."""
        answer = self._api.ask_until_answered(
            verb, path, body, limit_s=SET_UP_LIMIT_S, stop=self._stopped.is_set
        )
        return answer if answer is not None and answer.status in {HTTPStatus.OK, HTTPStatus.CREATED} else None

    def _at_stripe(self, name: str, **arguments: object) -> bool:
        """Do something at Stripe; False where it can't be told whether it was done."""
        deadline_s = time.monotonic() + SET_UP_LIMIT_S
        while time.monotonic() < deadline_s:
            try:
                control(self._around.stripe_url, name, **arguments)
            except ControlError:
                return False  # it was done by an earlier try whose answer was lost, or can't be any more
            except (OSError, HTTPException, msgspec.DecodeError):
                time.sleep(0.2)
            else:
                return True
        return False
