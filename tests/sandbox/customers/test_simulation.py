"""The demo's customers: what they are cast as, what they do, and what they do when it goes wrong."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
import redis

from db.attempts.outbox import FAILED_SIGNAL, SUCCEEDED_SIGNAL
from metering.payments.stripe_api import connect_stripe
from metering.rules.gates import Balance
from metering.rules.payments import MIN_CHARGE_CENTS, MIN_TOP_UP_CENTS
from metering.runtime.clock import system_clock
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.customers.cardholders import Cardholders, RealCardholders, StandInCardholders
from metering.sandbox.customers.personas import (
    BILL,
    CHALLENGED,
    FAILING,
    VISA,
    Persona,
    PersonaPlan,
    assign_personas,
)
from metering.sandbox.customers.simulation import CustomerError, Customers
from metering.sandbox.stripe.sandbox import StripeSandbox
from metering.sandbox.telephony.signal_history import BEFORE_ALL, read_reload_log
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.signals.gates import Gates
from metering.signals.reload_signals import ReloadSignals
from tests.conftest import Database
from tests.payments.world import World, make_world
from tests.waiting import wait_until

LIMIT_S = 20.0


@pytest.fixture
def world(database: Database, redis_client: redis.Redis) -> Iterator[World]:
    """An installation with org 1, without money or card."""
    with make_world(database, redis_client) as made:
        yield made


def test_parts_are_played_by_the_busiest_in_amounts_that_can_be_charged() -> None:
    roles = assign_personas(range(1, 40), {org_id: 40.0 / org_id for org_id in range(1, 40)}, 30)
    assert [role.persona for role in roles.values()] == list(BILL)
    assert set(BILL) == set(Persona)
    assert list(roles) == list(range(1, len(BILL) + 1))
    for role in roles.values():
        assert role.top_up_cents >= MIN_TOP_UP_CENTS
        assert role.amount_cents >= MIN_CHARGE_CENTS
        assert role.start_cents > 0
        assert role.monthly_limit_cents == (role.amount_cents if role.persona is Persona.CAPPED else None)
    assert [role.persona for role in assign_personas([7], {7: 1.0}, 1).values()] == [BILL[0]]


def role(org_id: int, part: Persona) -> PersonaPlan:
    return PersonaPlan(org_id, part, 100, 700, 300, 900)


Answers = Callable[[str, str, dict[str, Any]], tuple[int, dict[str, Any]]]


class Shop(ThreadingHTTPServer):
    """An API that answers as the test says, and keeps what it was asked."""

    def __init__(self, answer: Answers) -> None:
        self.asked: list[tuple[str, str, dict[str, Any], str | None]] = []
        self.answer = answer
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Shop

    def _handle(self) -> None:
        body = msgspec.json.decode(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.server.asked.append((self.command, self.path, body, self.headers.get("Idempotency-Key")))
        status, answer = self.server.answer(self.command, self.path, body)
        payload = msgspec.json.encode(answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_POST = do_PATCH = _handle  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class RecordingCardholders:
    """Cardholders who do what they are asked, and keep account of it."""

    where = "here"

    def __init__(self, *, can: bool = True) -> None:
        self.done: list[tuple[str, ...]] = []
        self._can = can

    def save_card(self, setup_intent_id: str, card: str, /) -> str:
        self.done.append(("save", setup_intent_id, card))
        return f"pm_of_{setup_intent_id}"

    def authenticate(self, payment_intent_id: str, /) -> bool:
        self.done.append(("authenticate", payment_intent_id))
        return self._can

    def spoil(self, payment_method_id: str, /) -> bool:
        self.done.append(("spoil", payment_method_id))
        return self._can

    def held_cents(self, customer_ids: Any) -> dict[str, int]:
        return dict.fromkeys(customer_ids, 0)


def usual(top_up: tuple[int, dict[str, Any]]) -> Answers:
    """Answers as the reference has them, and `top_up` to a top-up."""

    def answer(_verb: str, path: str, _body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.endswith("/top-up"):
            return top_up
        if path.endswith("/setup-intent"):
            return 200, {"setup_intent_id": "seti_1", "client_secret": "seti_1_secret"}
        return 200, {}

    return answer


@pytest.fixture
def shop() -> Iterator[Callable[[Answers], Shop]]:
    """Opens shops that are closed at the test's end."""
    opened: list[Shop] = []

    def open_one(answer: Answers) -> Shop:
        made = Shop(answer)
        opened.append(made)
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        return made

    yield open_one
    for each in opened:
        each.shutdown()
        each.server_close()


def customers(
    shop: Shop,
    cardholders: Cardholders,
    listener: SignalListener,
    *roles: PersonaPlan,
    now_s: Callable[[], float] | None = None,
) -> Customers:
    apis = {each.org_id: CustomerApi(shop.server_address[1], "sk_live_x") for each in roles}
    return Customers(
        {each.org_id: each for each in roles},
        apis,
        cardholders,
        listener,
        **({"now_s": now_s} if now_s else {}),
    )


def exhaust(client: redis.Redis, org_id: int, version: int) -> None:
    """Have said of an org that it has money, and then that it has none."""
    for step, cents in ((version, 5), (version + 1, 0)):
        Gates(client).follow([Balance(org_id, cents, step)], system_clock())


class Ahead:
    """A monotonic clock on which everything that is planned is due at once."""

    def __init__(self) -> None:
        self._s = 0.0

    def __call__(self) -> float:
        self._s += 1_000
        return self._s


def test_cards_are_saved_and_reloads_enabled_as_the_part_says(
    redis_client: redis.Redis, shop: Callable[[Answers], Shop]
) -> None:
    opened, cardholders = shop(usual((500, {}))), RecordingCardholders()
    with SignalListener(redis_client) as listener:
        for part in Persona:
            customers(opened, cardholders, listener, role(1, part)).set_up()
    assert cardholders.done == [("save", "seti_1", part.card) for part in Persona]
    assert {part.card for part in Persona} == {VISA, CHALLENGED, FAILING}
    patches = [body for verb, _, body, _ in opened.asked if verb == "PATCH"]
    assert [each["auto_reload_monthly_limit_cents"] for each in patches] == [None, 900, None]
    defaults = [body for _, path, body, _ in opened.asked if path.endswith("/default-payment-method")]
    assert defaults == [{"payment_method_id": "pm_of_seti_1"}] * len(Persona)


@pytest.mark.parametrize(
    ("part", "top_up", "answers", "cents", "authenticated"),
    [
        (Persona.TOPS_UP, (201, {"status": "succeeded"}), {"succeeded": 3}, 2_100, 0),
        (
            Persona.MEETS_3DS,
            (201, {"status": "requires_action", "payment_intent_id": "pi_1"}),
            {"requires_action": 3},
            2_100,
            3,
        ),
        (Persona.IS_DECLINED, (402, {"code": "card_declined"}), {"card_declined": 1}, 0, 0),
        (Persona.RELOADS, (201, {"status": "succeeded"}), {}, 0, 0),
    ],
)
def test_who_is_exhausted_does_what_his_part_is(
    redis_client: redis.Redis,
    shop: Callable[[Answers], Shop],
    part: Persona,
    top_up: tuple[int, dict[str, Any]],
    answers: dict[str, int],
    cents: int,
    authenticated: int,
) -> None:
    opened, cardholders = shop(usual(top_up)), RecordingCardholders()
    with SignalListener(redis_client) as listener:
        playing = customers(opened, cardholders, listener, role(1, part), now_s=Ahead())
        playing.start()
        for version in range(1, 11, 2):  # five times: more often than anybody tops up
            exhaust(redis_client, 1, version)
            exhaust(redis_client, 2, version)  # somebody else's
        wait_until(lambda: listener.count == 20, limit_s=LIMIT_S)
        wait_until(
            lambda: playing.answers == answers and playing.authenticated == authenticated, limit_s=LIMIT_S
        )
        playing.stop()
    assert playing.error is None
    assert playing.answers == answers
    assert sum(playing.topped_up.values()) == cents
    keys = [key for _, path, _, key in opened.asked if path.endswith("/top-up")]
    assert len(set(keys)) == len(keys) == sum(answers.values())


def reloaded(client: redis.Redis, org_id: int, type_: str, signal_id: int) -> None:
    message = {
        "type": type_,
        "org_id": org_id,
        "id": signal_id,
        "amount_cents": 900,
        "at": "2026-04-20T18:25:07.020Z",
    }
    ReloadSignals(client).publish([msgspec.json.encode(message).decode()])


@pytest.mark.parametrize("can", [True, False], ids=["stand-in", "Stripe itself"])
def test_a_card_begins_to_fail_after_its_first_reload(
    redis_client: redis.Redis, shop: Callable[[Answers], Shop], can: bool
) -> None:
    cardholders = RecordingCardholders(can=can)
    with SignalListener(redis_client) as listener:
        roles = (role(1, Persona.CARD_FAILS), role(2, Persona.RELOADS))
        playing = customers(shop(usual((500, {}))), cardholders, listener, *roles)
        playing.set_up()
        cardholders.done.clear()
        playing.start()
        reloaded(redis_client, 1, FAILED_SIGNAL, 1)
        reloaded(redis_client, 2, SUCCEEDED_SIGNAL, 2)
        reloaded(redis_client, 1, SUCCEEDED_SIGNAL, 3)
        wanted = [("spoil", "pm_of_seti_1")] + ([] if can else [("save", "seti_1", FAILING)])
        wait_until(lambda: cardholders.done == wanted, limit_s=LIMIT_S)
        playing.stop()
    assert playing.error is None


def test_an_answer_that_nobody_promised_ends_it_and_is_kept(
    redis_client: redis.Redis, shop: Callable[[Answers], Shop]
) -> None:
    with SignalListener(redis_client) as listener:
        playing = customers(
            shop(usual((409, {"code": "idempotency_conflict"}))),
            RecordingCardholders(),
            listener,
            role(1, Persona.TOPS_UP),
            now_s=Ahead(),
        )
        playing.start()
        exhaust(redis_client, 1, 1)
        playing.join(LIMIT_S)
    assert "org 1 was answered 409 to POST /v1/billing/top-up" in str(playing.error)


def test_a_card_that_can_not_be_saved_ends_the_setting_up(
    redis_client: redis.Redis, shop: Callable[[Answers], Shop]
) -> None:
    def refuses(_verb: str, _path: str, _body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 401, {"code": "unauthenticated"}

    with SignalListener(redis_client) as listener, pytest.raises(CustomerError, match="was answered 401"):
        customers(shop(refuses), RecordingCardholders(), listener, role(1, Persona.TOPS_UP)).set_up()


def test_signals_about_reloads_are_read_once_each(redis_client: redis.Redis) -> None:
    exhaust(redis_client, 1, 1)
    for org_id, signal_id in ((1, 1), (1, 1), (2, 2), (3, 3)):
        reloaded(redis_client, org_id, SUCCEEDED_SIGNAL, signal_id)
    found = read_reload_log(redis_client, BEFORE_ALL, {1, 2})
    assert [(each.org_id, each.id, each.amount_cents) for each in found] == [(1, 1, 900), (2, 2, 900)]


@pytest.mark.parametrize("kind", ["stand-in", "test mode"])
def test_cardholders_save_cards_and_say_what_is_held(kind: str) -> None:
    with StripeSandbox() as sandbox:
        stripe = connect_stripe(sandbox.api_key, base_url=sandbox.url)
        cardholders: Cardholders = (
            StandInCardholders(sandbox.url)
            if kind == "stand-in"
            else RealCardholders(sandbox.api_key, sandbox.url)
        )
        customer, other = (stripe.create_customer(org_id, "Acme", key=str(org_id)) for org_id in (1, 2))
        for card in (VISA, CHALLENGED, FAILING):
            intent, _ = stripe.create_setup_intent(customer)
            method = cardholders.save_card(intent, card)
            assert stripe.retrieve_card(method).customer_id == customer
        assert cardholders.held_cents([customer, other]) == {customer: 0, other: 0}


def test_what_is_held_is_what_was_taken_less_what_went_back(world: World) -> None:
    world.save_card()
    world.top_up(2_000)
    world.top_up(700)
    (intent_id, _) = (attempt.payment_intent_id for attempt in world.attempts())
    world.sandbox.refund(intent_id or "", amount_cents=150)
    customer = world.account().stripe_customer_id or ""
    for cardholders in (
        StandInCardholders(world.sandbox.url),
        RealCardholders(world.sandbox.api_key, world.sandbox.url),
    ):
        assert cardholders.held_cents([customer]) == {customer: 2_550}


def test_at_the_stand_in_3ds_is_passed_and_a_card_spoilt(world: World) -> None:
    cardholders = StandInCardholders(world.sandbox.url)
    world.save_card(CHALLENGED)
    world.top_up(2_000)
    (attempt,) = world.attempts()
    assert cardholders.authenticate(attempt.payment_intent_id or "")
    world.clock.move(minutes=1)
    world.reconcile()
    assert world.balance() == 2_000
    assert cardholders.spoil(world.save_card())
    world.top_up(700)
    assert world.attempts()[-1].failure_code == "insufficient_funds"
