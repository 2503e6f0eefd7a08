"""Simulated customers: they save cards, enable auto-reload and top up, through the HTTP API as their programs would."""

import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from db.attempts.outbox import SUCCEEDED_SIGNAL
from metering.rules.gates import SignalType
from metering.sandbox.customers.billing_api import Answer, CustomerApi
from metering.sandbox.customers.cardholders import Cardholders
from metering.sandbox.customers.personas import FAILING, Persona, PersonaPlan
from metering.sandbox.telephony.signal_listener import SignalListener

BILLING: Final = "/v1/billing"
POLL_EVERY_S: Final = 0.1
SET_UP_THREADS: Final = 4
PATIENCE_S: Final = 30.0
"""How long an answer that can be had may take."""
TAKES_S: Final = 0.7
"""How long a customer takes to see that he is out of money, and to top up."""
CHALLENGE_TAKES_S: Final = 1.5
"""How long a customer takes to pass 3DS in his browser."""
TOP_UPS: Final = 3
"""How often a customer tops up; those who are declined don't try again."""


class CustomerError(Exception):
    """A customer was answered what he should not have been. The text says what."""


class Customers(threading.Thread):
    """Hears who is exhausted, and does what the customer's part is."""

    def __init__(
        self,
        roles: Mapping[int, PersonaPlan],
        apis: Mapping[int, CustomerApi],
        cardholders: Cardholders,
        listener: SignalListener,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="customers", daemon=True)
        self.roles = roles
        self.topped_up: Counter[int] = Counter()
        """By org, in cents: what customers were told that they have topped up, or have seen in their browser."""
        self.answers: Counter[str] = Counter()
        """How top-ups were answered: Stripe's status, or the error's code."""
        self.authenticated = 0
        self.error: Exception | None = None
        """What ended it early."""
        self._apis = apis
        self._cardholders = cardholders
        self._listener = listener
        self._now_s = now_s
        self._cards: dict[int, str] = {}
        self._left = {org_id: self._top_ups(role) for org_id, role in roles.items()}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = threading.Event()

    def set_up(self) -> None:
        """Save everybody's card, and enable reloads. Raises CustomerError, and what the cardholders' side raises."""
        with ThreadPoolExecutor(SET_UP_THREADS) as threads:
            for _ in threads.map(self._set_up, self.roles.values()):
                pass

    def stop(self) -> None:
        """Do no more, and return when what is being done is done."""
        self._stopped.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        signals = reloads = 0
        try:
            while not self._stopped.wait(POLL_EVERY_S):
                before, signals = signals, self._listener.count
                for heard in self._listener.heard(self.roles, before):
                    if heard.message.type is SignalType.EXHAUSTED:
                        self._plan(TAKES_S, partial(self._top_up, self.roles[heard.message.org_id]))
                news, reloads = self._listener.reloads[reloads:], len(self._listener.reloads)
                for message in news:
                    role = self.roles.get(message.org_id)
                    if message.type == SUCCEEDED_SIGNAL and role and role.persona is Persona.CARD_FAILS:
                        self._spoil(role)
                while self._due and self._due[0][0] <= self._now_s():
                    heapq.heappop(self._due)[2]()
        except Exception as error:  # noqa: BLE001 - whatever it is, the verdict names it
            self.error = error

    @staticmethod
    def _top_ups(role: PersonaPlan) -> int:
        if role.persona.reloads:
            return 0
        return 1 if role.persona is Persona.IS_DECLINED else TOP_UPS

    def _plan(self, after_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._now_s() + after_s, next(self._numbers), action))

    def _set_up(self, role: PersonaPlan) -> None:
        self._save_card(role, role.persona.card)
        if role.persona.reloads:
            settings = {
                "auto_reload_enabled": True,
                "auto_reload_minimum_cents": role.minimum_cents,
                "auto_reload_amount_cents": role.amount_cents,
                "auto_reload_monthly_limit_cents": role.monthly_limit_cents,
            }
            self._ask(role, "PATCH", BILLING, settings)

    def _save_card(self, role: PersonaPlan, card: str) -> None:
        made = self._ask(role, "POST", f"{BILLING}/setup-intent")
        self._cards[role.org_id] = self._cardholders.save_card(made.body["setup_intent_id"], card)
        body = {"payment_method_id": self._cards[role.org_id]}
        self._ask(role, "POST", f"{BILLING}/default-payment-method", body)

    def _spoil(self, role: PersonaPlan) -> None:
        """Let the card fail that has just been charged; where that can't be, the customer saves one that does."""
        if not self._cardholders.spoil(self._cards[role.org_id]):
            self._save_card(role, FAILING)

    def _top_up(self, role: PersonaPlan) -> None:
        number = self._left[role.org_id]
        if not number:
            return
        self._left[role.org_id] -= 1
        answer = self._ask(
            role, "POST", f"{BILLING}/top-up", {"amount_cents": role.top_up_cents}, key=f"demo-{number}"
        )
        outcome = answer.body["status" if answer.status == HTTPStatus.CREATED else "code"]
        self.answers[outcome] += 1
        if outcome == "succeeded":
            self.topped_up[role.org_id] += role.top_up_cents
        elif outcome == "requires_action":
            self._plan(CHALLENGE_TAKES_S, partial(self._authenticate, role, answer.body["payment_intent_id"]))

    def _authenticate(self, role: PersonaPlan, payment_intent_id: str) -> None:
        """Pass 3DS, in the browser; the product hears of it by the webhook."""
        if self._cardholders.authenticate(payment_intent_id):
            self.authenticated += 1
            self.topped_up[role.org_id] += role.top_up_cents

    def _ask(
        self,
        role: PersonaPlan,
        verb: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Answer:
        """Ask until there is an answer that stands. Raises CustomerError for one that isn't what the reference promises."""
        answer = self._apis[role.org_id].ask_until_answered(verb, path, body, key=key, limit_s=PATIENCE_S)
        if answer is None:
            raise CustomerError(f"org {role.org_id} got no answer to {verb} {path} for {PATIENCE_S:.0f} s")
        expected = {HTTPStatus.OK, HTTPStatus.CREATED}
        if path.endswith("/top-up"):
            expected.add(HTTPStatus.PAYMENT_REQUIRED)
        if answer.status not in expected:
            raise CustomerError(
                f"org {role.org_id} was answered {answer.status} to {verb} {path}: {answer.body}"
            )
        return answer
