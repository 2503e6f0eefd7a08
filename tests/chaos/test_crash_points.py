"""Killed at each place between two effects of the API and the jobs, by name: what comes after makes it exact.

The meter's places are in tests/workers/test_crashes.py.
"""

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
import redis

from db.api_keys import create_key
from db.engine import transaction
from metering.payments.outcomes import TopUpMade
from metering.rules.payments import AttemptStatus
from metering.runtime.clock import ENVIRONMENT_VARIABLE, system_clock
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.chaos.calendar import Calendar
from metering.sandbox.chaos.customer_api import CustomerApi
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from tests.conftest import Database
from tests.gates.listening import gate, signals_log
from tests.gates.test_jobs import role
from tests.payments.world import World, make_world
from tests.waiting import wait_until
from tests.workers.reloading import ready_to_reload

LIMIT_S: Final = 60.0
LEASES_OVER: Final = timedelta(seconds=65)
"""By then nobody else takes what died for being at work, and the list of events is read again."""


@dataclass
class Stage:
    """An installation whose roles are processes, and one customer."""

    world: World
    calendar: Calendar
    api: CustomerApi
    start: Callable[..., AbstractContextManager["subprocess.Popen[bytes]"]]
    method: str = ""


@pytest.fixture
def stage(database: Database, redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    calendar = Calendar(tmp_path / "clock")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with make_world(database.engine, redis_client, at=system_clock()) as world:
        with transaction(database.engine) as connection:
            api_key = create_key(connection, 1, system_clock()).api_key
        settings = {
            "STRIPE_API_KEY": world.sandbox.api_key,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPE_API_BASE": world.sandbox.url,
            "METERING_HTTP_PORT": str(port),
            ENVIRONMENT_VARIABLE: str(calendar.path),
        }

        def start(name: str, crash_point: str = "") -> AbstractContextManager["subprocess.Popen[bytes]"]:
            return role(
                database, redis_url, tmp_path / "log", name, crash_point=crash_point, settings=settings
            )

        yield Stage(world, calendar, CustomerApi(port, api_key), start)


@dataclass(frozen=True)
class Scene:
    """How a point is come to, and what is true in the end, however often the process died on the way."""

    role: str
    prepare: Callable[[Stage], object]
    ask: Callable[[Stage], bool | None]
    """What a customer asks for, again and again until it is done; None where no answer came."""
    ended: Callable[[Stage], bool]
    check: Callable[[Stage], object]


def _nothing(_: Stage) -> None:
    """Nobody asks for anything: the sweep comes upon it by itself."""


def _crossed(stage: Stage) -> None:
    ready_to_reload(stage.world)
    stage.world.adjust(-1)


def _reloaded(stage: Stage) -> bool:
    return stage.world.balance() == 999 + 5_000 and not _signals_wait(stage)


def _charged_once(stage: Stage) -> None:
    assert stage.world.charged() == 1
    assert [each.status for each in stage.world.attempts()] == [AttemptStatus.SUCCEEDED]


def _crossed_with_a_dead_card(stage: Stage) -> None:
    _crossed(stage)
    stage.world.sandbox.fail_card(stage.world.account().default_payment_method_id or "")


def _declined(stage: Stage) -> bool:
    return not any(each.open for each in stage.world.attempts()) and not _signals_wait(stage)


def _cancelled_and_paused(stage: Stage) -> None:
    assert stage.world.charged() == 0
    (attempt,) = stage.world.attempts()
    assert attempt.status is AttemptStatus.FAILED
    assert [each["status"] for each in stage.world.intents()] == ["canceled"]
    assert stage.world.rows("SELECT pause_code FROM reload_states")[0].pause_code == "generic_decline"


def _with_card(stage: Stage) -> None:
    stage.method = stage.world.save_card()


def _top_up(stage: Stage) -> bool | None:
    answer = stage.api.ask("POST", "/v1/billing/top-up", {"amount_cents": 700})
    return None if answer is None else (answer.status, answer.body.get("status")) == (201, "succeeded")


def _topped_up(stage: Stage) -> bool:
    return stage.world.balance() == 700


def _setup_intent(stage: Stage) -> bool | None:
    answer = stage.api.ask("POST", "/v1/billing/setup-intent")
    return None if answer is None else answer.status == 200


def _one_customer(stage: Stage) -> None:
    (customer,) = stage.world.stripe.v1.customers.list().data
    assert stage.world.account().stripe_customer_id == customer.id


def _with_another_card(stage: Stage) -> None:
    _with_card(stage)
    stage.method = stage.world.sandbox.save_card(
        stage.world.account().stripe_customer_id or "", card="pm_card_mastercard"
    )


def _choose_card(stage: Stage) -> bool | None:
    body = {"payment_method_id": stage.method}
    answer = stage.api.ask("POST", "/v1/billing/default-payment-method", body)
    return None if answer is None else answer.status == 200


def _chosen(stage: Stage) -> bool:
    return stage.world.account().default_payment_method_id == stage.method


def _authenticated_and_no_webhook(stage: Stage) -> None:
    stage.world.save_card("pm_card_authenticationRequired")
    made = stage.world.top_up(700).outcome
    assert isinstance(made, TopUpMade)
    stage.world.sandbox.authenticate(made.payment_intent_id)


def _signals_wait(stage: Stage) -> bool:
    return bool(stage.world.rows("SELECT FROM pending_signals"))


def _all_said(stage: Stage) -> bool:
    return _reloaded(stage)


def _said_with_one_id(stage: Stage) -> None:
    said = [each for each in signals_log(stage.world.client) if each["type"] == "auto_reload.succeeded"]
    assert len(said) in {1, 2}
    assert len({each["id"] for each in said}) == 1


def _gate_missing(stage: Stage) -> None:
    stage.world.adjust(500)
    stage.world.client.delete("gate:1")


def _gate_ahead(stage: Stage) -> None:
    stage.world.adjust(500)
    stage.world.client.hset("gate:1", mapping={"state": "exhausted", "balance_cents": -3, "version": 70})


def _gate_follows(stage: Stage) -> bool:
    held = gate(stage.world.client, 1)
    return held.get("state") == "open" and held.get("balance_cents") == "500"


def _yes(_: Stage) -> bool:
    return True


RELOAD: Final = Scene("jobs", _crossed, _nothing, _reloaded, _charged_once)
DECLINE: Final = Scene("jobs", _crossed_with_a_dead_card, _nothing, _declined, _cancelled_and_paused)
TOP_UP: Final = Scene("api", _with_card, _top_up, _topped_up, _charged_once)

SCENES: Final = {
    CrashPoint.CHARGE_BEFORE_SEND: RELOAD,
    CrashPoint.CHARGE_AFTER_SEND: RELOAD,
    CrashPoint.SETTLE_AFTER_WRITE: RELOAD,
    CrashPoint.SETTLE_AFTER_COMMIT: RELOAD,
    CrashPoint.SIGNALS_AFTER_SAY: Scene("jobs", _crossed, _nothing, _all_said, _said_with_one_id),
    CrashPoint.CHARGE_BEFORE_CANCEL: DECLINE,
    CrashPoint.CHARGE_AFTER_CANCEL: DECLINE,
    CrashPoint.TOP_UP_AFTER_ATTEMPT: TOP_UP,
    CrashPoint.TOP_UP_BEFORE_ANSWER: TOP_UP,
    CrashPoint.CUSTOMER_AFTER_CREATE: Scene("api", _nothing, _setup_intent, _yes, _one_customer),
    CrashPoint.CARD_AFTER_DEFAULT: Scene("api", _with_another_card, _choose_card, _chosen, _nothing),
    CrashPoint.EVENTS_BEFORE_ADVANCE: Scene(
        "jobs", _authenticated_and_no_webhook, _nothing, _topped_up, _charged_once
    ),
    CrashPoint.SWEEP_BEFORE_WRITE: Scene("jobs", _gate_missing, _nothing, _gate_follows, _nothing),
    CrashPoint.SWEEP_AFTER_RAISE: Scene("jobs", _gate_ahead, _nothing, _gate_follows, _nothing),
}


def test_every_crash_point_has_its_scene() -> None:
    meters = {point for point in CrashPoint if point.startswith(("meter.", "ledger."))}
    assert set(CrashPoint) - meters - set(SCENES) == {
        CrashPoint.TOP_UP_BEFORE_MARK
    }  # it has a test of its own


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", SCENES)
def test_killed_at_a_crash_point(stage: Stage, point: CrashPoint) -> None:
    scene = SCENES[point]
    scene.prepare(stage)
    with stage.start(scene.role, point) as process:
        wait_until(lambda: scene.ask(stage) is None and process.poll() is not None, limit_s=LIMIT_S)
        assert process.wait() == -signal.SIGKILL
    stage.calendar.advance(LEASES_OVER)
    with stage.start(scene.role):
        if scene.ask is not _nothing:
            wait_until(lambda: scene.ask(stage), limit_s=LIMIT_S)
        wait_until(lambda: scene.ended(stage), limit_s=LIMIT_S)
    scene.check(stage)
    stage.world.mend_gates()
    stage.world.assert_sound()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_killed_before_it_is_noted_that_a_client_was_told(stage: Stage) -> None:
    """Nobody can know whether he was: so an identical request is told the same once more, and is not charged again."""
    _with_card(stage)
    with stage.start("api", CrashPoint.TOP_UP_BEFORE_MARK) as process:
        wait_until(lambda: _top_up(stage) is not None or process.poll() is not None, limit_s=LIMIT_S)
        assert process.wait(LIMIT_S) == -signal.SIGKILL
    stage.calendar.advance(LEASES_OVER)
    with stage.start("api"):
        wait_until(lambda: _top_up(stage), limit_s=LIMIT_S)
        assert (stage.world.charged(), stage.world.balance()) == (1, 700)
        wait_until(lambda: _top_up(stage) and stage.world.charged() == 2, limit_s=LIMIT_S)
    assert stage.world.balance() == 1_400
    stage.world.mend_gates()
    stage.world.assert_sound()
