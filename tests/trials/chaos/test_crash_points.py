"""Killed at each place between two effects of the API and the jobs, by name: what comes after makes it exact.

The meter's places are in tests/workers/test_crashes.py; here are those after which only others can go on.
"""

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import httpx
import pytest
import redis
from sqlalchemy import make_url

from db.accounts.api_keys import create_key
from db.audit.passes import CHANGES, WHOLE, claim_pass, read_standing, release_pass
from db.ledger.prices import set_price
from db.postgres.engine import psycopg_url, transaction
from metering.payments.outcomes import TopUpMade
from metering.rules.payments import AttemptStatus
from metering.runtime.clock import ENVIRONMENT_VARIABLE, system_clock
from metering.runtime.crashpoints import CrashPoint
from metering.sandbox.customers.billing_api import CustomerApi
from metering.sandbox.stripe.sandbox import WEBHOOK_SECRET
from metering.sandbox.stripe.signatures import signature_header
from metering.trials.chaos.calendar import Calendar
from tests.conftest import Database
from tests.db import execute_as
from tests.payments.world import World, make_world
from tests.signals.listening import gate, signals_log
from tests.signals.test_jobs import role
from tests.spine.billing import event, price, push
from tests.waiting import wait_until
from tests.workers.reloading import ready_to_reload
from workers.audit_job import CHANGES_EVERY, CHANGES_LEASE, WHOLE_LEASE
from workers.enqueue import AttemptQueue
from workers.stream import Backlog, backlog

LIMIT_S: Final = 60.0
LEASES_OVER: Final = timedelta(seconds=65)
"""By then nobody else takes what died for being at work, and the list of events is read again."""


@dataclass
class Stage:
    """An installation whose roles are processes, and one customer."""

    world: World
    calendar: Calendar
    api: CustomerApi
    port: int
    start: Callable[..., AbstractContextManager["subprocess.Popen[bytes]"]]
    method: str = ""


@pytest.fixture
def stage(database: Database, redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    calendar = Calendar(tmp_path / "clock", psycopg_url(make_url(database.owner_url)))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with make_world(database, redis_client, at=None) as world:
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

        yield Stage(world, calendar, CustomerApi(port, api_key), port, start)


def _nothing(_: Stage) -> None:
    """Nobody asks for anything: the reconciler comes upon it by itself."""


def _yes(_: Stage) -> bool:
    return True


@dataclass(frozen=True)
class Scene:
    """How a point is come to, and what is true in the end, however often the process died on the way."""

    role: str
    prepare: Callable[[Stage], object]
    ask: Callable[[Stage], bool | None]
    """What a customer asks for, again and again until it is done; None where no answer came."""
    ended: Callable[[Stage], bool]
    check: Callable[[Stage], object]
    left: Callable[[Stage], object] = _yes
    """What the dead process must have done, and left undone."""
    then: tuple[str, ...] = ()
    """The roles that make it good, unless it is the same one, started again."""


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


def _gate_told_and_signal_not(stage: Stage) -> bool:
    return gate(stage.world.client, 1).get("balance_cents") == "5999" and _signals_wait(stage)


def _crossed_with_too_small_an_amount(stage: Stage) -> None:
    """Two reloads are needed: the first one's settlement makes the second."""
    ready_to_reload(stage.world, amount_cents=500)
    stage.world.adjust(-600)


def _reloaded_twice_by_little(stage: Stage) -> bool:
    return stage.world.balance() == 400 + 2 * 500 and not _signals_wait(stage)


def _charged_twice(stage: Stage) -> None:
    assert stage.world.charged() == 2
    assert [each.status for each in stage.world.attempts()] == [AttemptStatus.SUCCEEDED] * 2


def _attempt_not_enqueued(stage: Stage) -> bool:
    return any(each.open for each in stage.world.attempts()) and not _enqueued(stage)


def _enqueued(stage: Stage) -> object:
    return stage.world.client.llen("metering:jobs:money")


def _crossed_and_enqueued(stage: Stage) -> None:
    _crossed(stage)
    AttemptQueue(stage.world.client).enqueue_all(stage.world.enqueued)


def _message_in_hand(stage: Stage) -> bool:
    return not _enqueued(stage) and stage.world.client.hlen("metering:jobs:money.msgs") == 1


def _reloaded_and_message_done(stage: Stage) -> bool:
    """Whoever takes the dead worker's message finds nothing to do."""
    return _reloaded(stage) and stage.world.client.hlen("metering:jobs:money.msgs") == 0


def _month_over_after_its_limit(stage: Stage) -> None:
    """The rule is asked by nobody but the reconciler."""
    ready_to_reload(stage.world)
    stage.world.settings(monthly_limit_cents=5_000)
    stage.world.adjust(-1)
    stage.world.work()
    stage.world.adjust(-5_000)
    stage.world.clock.at = stage.calendar.advance(timedelta(days=32))


def _with_little_money_and_no_reloads(stage: Stage) -> None:
    stage.world.adjust(500)
    _with_card(stage)


def _enable(stage: Stage) -> bool | None:
    body = {
        "auto_reload_enabled": True,
        "auto_reload_minimum_cents": 1_000,
        "auto_reload_amount_cents": 5_000,
    }
    answer = stage.api.ask("PATCH", "/v1/billing", body)
    return None if answer is None else answer.status == 200 and answer.body["auto_reload_enabled"] is True


def _reloaded_once_enabled(stage: Stage) -> bool:
    return stage.world.balance() == 500 + 5_000 and not _signals_wait(stage)


def _paused_by_a_dead_card(stage: Stage) -> None:
    _crossed_with_a_dead_card(stage)
    stage.world.work()
    stage.method = stage.world.sandbox.save_card(
        stage.world.account().stripe_customer_id or "", card="pm_card_mastercard"
    )


def _paused_and_its_card_gone(stage: Stage) -> None:
    _crossed_with_a_dead_card(stage)
    stage.world.work()
    stage.world.sandbox.detach(stage.world.account().default_payment_method_id or "")


def _all_left_are_said(stage: Stage) -> bool:
    return not _signals_wait(stage)


def _told_of_the_card_once(stage: Stage) -> None:
    assert (stage.world.charged(), stage.world.account().default_payment_method_id) == (0, None)
    reasons = [each.get("reason") for each in signals_log(stage.world.client)]
    assert reasons.count("no_payment_method") == 1


def _charged_with_the_new_card(stage: Stage) -> None:
    assert stage.world.charged() == 1
    assert [(each.status, each.payment_method_id == stage.method) for each in stage.world.attempts()] == [
        (AttemptStatus.FAILED, False),
        (AttemptStatus.SUCCEEDED, True),
    ]


def _with_card(stage: Stage) -> None:
    stage.method = stage.world.save_card()


def _top_up(stage: Stage) -> bool | None:
    answer = stage.api.ask("POST", "/v1/billing/top-up", {"amount_cents": 700})
    return None if answer is None else (answer.status, answer.body.get("status")) == (201, "succeeded")


def _top_up_with_key(stage: Stage) -> bool | None:
    """Asked twice with the same key, the second time by somebody who was answered."""
    first, second = (
        stage.api.ask("POST", "/v1/billing/top-up", {"amount_cents": 700}, key="key-1") for _ in "12"
    )
    return None if first is None else first.status == 201 and first == second


def _answer_kept(stage: Stage) -> bool:
    return bool(stage.world.rows("SELECT FROM idempotency_keys WHERE answer IS NOT NULL"))


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


def _tell_of_success(stage: Stage) -> bool | None:
    return _tell_by_webhook(stage, "payment_intent.succeeded")


def _tell_of_detaching(stage: Stage) -> bool | None:
    return _tell_by_webhook(stage, "payment_method.detached")


def _tell_by_webhook(stage: Stage, wanted: str) -> bool | None:
    """Stripe tells of it, again and again until it is heard."""
    (told,) = stage.world.events(wanted)
    body = json.dumps(told).encode()
    signature = signature_header(body, [WEBHOOK_SECRET], int(stage.calendar.clock().timestamp()))
    try:
        response = httpx.post(
            f"http://127.0.0.1:{stage.port}/v1/stripe/webhook",
            content=body,
            headers={"Stripe-Signature": signature, "Content-Type": "application/json"},
            timeout=LIMIT_S,
        )
    except httpx.HTTPError:
        return None
    return response.status_code == 200


def _event_kept_once(stage: Stage) -> None:
    _charged_once(stage)
    kept = stage.world.rows("SELECT outcome FROM stripe_events WHERE type = 'payment_intent.succeeded'")
    assert [each.outcome for each in kept] == ["credited"]


def _nothing_booked(stage: Stage) -> bool:
    return stage.world.balance() == 0 and not stage.world.rows("SELECT FROM stripe_events")


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


def _calls_that_cross(stage: Stage) -> None:
    """Of org 1, which is to be charged, and of org 2, of which is to be said that it isn't; in one batch."""
    with transaction(stage.world.engine) as connection:
        set_price(connection, price("bolt", "0.08"), system_clock)
    ready_to_reload(stage.world, (1, 2))
    stage.world.settings(org_id=2, monthly_limit_cents=0)
    push(stage.world.client, [event(call_id=org_id, org_id=org_id) for org_id in (1, 2)])


def _acked_and_nothing_else(stage: Stage) -> bool:
    return _acked(stage) and _attempt_not_enqueued(stage) and _signals_wait(stage)


def _acked_and_enqueued(stage: Stage) -> bool:
    return _acked(stage) and _enqueued(stage) == 1 and _signals_wait(stage)


def _acked(stage: Stage) -> bool:
    return backlog(stage.world.client) == Backlog(length=0, pending=0)


def _called_and_reloaded(stage: Stage) -> bool:
    return stage.world.balance() == 984 + 5_000 and not _signals_wait(stage)


def _one_charged_and_both_told(stage: Stage) -> None:
    _charged_once(stage)
    assert (stage.world.balance(2), stage.world.attempts(2)) == (984, [])
    said = signals_log(stage.world.client)
    told = {(each["type"], each["org_id"], each["id"]) for each in said if each["type"].startswith("auto_")}
    # By ids: what was said just before the crash may be said again. No more than one each, however often.
    assert sorted(each[:2] for each in told) == [("auto_reload.skipped", 2), ("auto_reload.succeeded", 1)]


RELOAD: Final = Scene("jobs", _crossed, _nothing, _reloaded, _charged_once)
DECLINE: Final = Scene("jobs", _crossed_with_a_dead_card, _nothing, _declined, _cancelled_and_paused)
TOP_UP: Final = Scene("api", _with_card, _top_up, _topped_up, _charged_once)

WEBHOOK: Final = Scene("api", _authenticated_and_no_webhook, _tell_of_success, _topped_up, _event_kept_once)
SMALL_RELOADS: Final = Scene(
    "jobs", _crossed_with_too_small_an_amount, _nothing, _reloaded_twice_by_little, _charged_twice
)
ENABLING: Final = Scene(
    "api",
    _with_little_money_and_no_reloads,
    _enable,
    _reloaded_once_enabled,
    _charged_once,
    _attempt_not_enqueued,
    then=("api", "jobs"),
)
CALLS: Final = Scene(
    "meter", _calls_that_cross, _nothing, _called_and_reloaded, _one_charged_and_both_told, then=("jobs",)
)

SCENES: Final = [
    (CrashPoint.CHARGE_BEFORE_SEND, RELOAD),
    (CrashPoint.CHARGE_BEFORE_SEND, TOP_UP),
    (CrashPoint.CHARGE_AFTER_SEND, RELOAD),
    (CrashPoint.CHARGE_AFTER_SEND, TOP_UP),
    (CrashPoint.SETTLE_AFTER_WRITE, RELOAD),
    (CrashPoint.SETTLE_AFTER_WRITE, replace(WEBHOOK, left=_nothing_booked)),
    (CrashPoint.SETTLE_AFTER_COMMIT, RELOAD),
    (CrashPoint.SETTLE_AFTER_COMMIT, TOP_UP),
    (CrashPoint.SETTLE_AFTER_COMMIT, replace(WEBHOOK, left=_topped_up)),
    (
        CrashPoint.FOLLOW_AFTER_COMMIT,
        Scene(
            "jobs", _month_over_after_its_limit, _nothing, _reloaded, _charged_twice, _attempt_not_enqueued
        ),
    ),
    (CrashPoint.FOLLOW_AFTER_COMMIT, ENABLING),
    (
        CrashPoint.FOLLOW_AFTER_COMMIT,
        Scene(
            "api",
            _paused_by_a_dead_card,
            _choose_card,
            _reloaded,
            _charged_with_the_new_card,
            _attempt_not_enqueued,
            then=("api", "jobs"),
        ),
    ),
    (
        CrashPoint.FOLLOW_AFTER_COMMIT,
        Scene(
            "api",
            _paused_and_its_card_gone,
            _tell_of_detaching,
            _all_left_are_said,
            _told_of_the_card_once,
            _signals_wait,
            then=("api", "jobs"),
        ),
    ),
    (CrashPoint.FOLLOW_AFTER_GATE, replace(RELOAD, left=_gate_told_and_signal_not)),
    (CrashPoint.FOLLOW_AFTER_GATE, TOP_UP),
    (CrashPoint.FOLLOW_BEFORE_ENQUEUE, replace(SMALL_RELOADS, left=_attempt_not_enqueued)),
    (CrashPoint.FOLLOW_BEFORE_ENQUEUE, ENABLING),
    (CrashPoint.SIGNALS_AFTER_PUBLISH, Scene("jobs", _crossed, _nothing, _all_said, _said_with_one_id)),
    (CrashPoint.SIGNALS_AFTER_PUBLISH, CALLS),
    (
        CrashPoint.CHARGE_BEFORE_ACK,
        Scene(
            "jobs",
            _crossed_and_enqueued,
            _nothing,
            _reloaded_and_message_done,
            _charged_once,
            _message_in_hand,
        ),
    ),
    (CrashPoint.METER_AFTER_ACK, replace(CALLS, left=_acked_and_nothing_else)),
    (CrashPoint.RELOADS_AFTER_ENQUEUE, replace(CALLS, left=_acked_and_enqueued)),
    (CrashPoint.CHARGE_BEFORE_CANCEL, DECLINE),
    (CrashPoint.CHARGE_AFTER_CANCEL, DECLINE),
    (CrashPoint.TOP_UP_AFTER_ATTEMPT, TOP_UP),
    (CrashPoint.TOP_UP_BEFORE_ANSWER, TOP_UP),
    (
        CrashPoint.TOP_UP_AFTER_KEEP,
        Scene("api", _with_card, _top_up_with_key, _topped_up, _charged_once, _answer_kept),
    ),
    (CrashPoint.CUSTOMER_AFTER_CREATE, Scene("api", _nothing, _setup_intent, _yes, _one_customer)),
    (CrashPoint.CARD_AFTER_DEFAULT, Scene("api", _with_another_card, _choose_card, _chosen, _nothing)),
    (CrashPoint.WEBHOOK_BEFORE_ANSWER, replace(WEBHOOK, left=_topped_up)),
    (
        CrashPoint.EVENTS_BEFORE_ADVANCE,
        Scene("jobs", _authenticated_and_no_webhook, _nothing, _topped_up, _charged_once),
    ),
    (CrashPoint.RECONCILER_BEFORE_WRITE, Scene("jobs", _gate_missing, _nothing, _gate_follows, _nothing)),
    (CrashPoint.RECONCILER_AFTER_RAISE, Scene("jobs", _gate_ahead, _nothing, _gate_follows, _nothing)),
]

AUDITS: Final = [
    (CrashPoint.AUDIT_AFTER_PAGE, CHANGES),
    (CrashPoint.AUDIT_BEFORE_FINISH, CHANGES),
    (CrashPoint.AUDIT_BEFORE_FINISH, WHOLE),
]


def test_every_crash_point_has_its_scene() -> None:
    meters = {point for point in CrashPoint if point.startswith(("meter.", "ledger."))}
    others = {CrashPoint.TOP_UP_BEFORE_MARK, CrashPoint.REPRICE_AFTER_ORG} | {
        point for point, _ in AUDITS
    }  # they have tests of their own
    assert set(CrashPoint) - meters - others == {point for point, _ in SCENES} - meters


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("point", "scene"), SCENES, ids=[f"{point}-{scene.role}" for point, scene in SCENES])
def test_killed_at_a_crash_point(stage: Stage, point: CrashPoint, scene: Scene) -> None:
    scene.prepare(stage)
    with stage.start(scene.role, point) as process:
        wait_until(lambda: scene.ask(stage) is None and process.poll() is not None, limit_s=LIMIT_S)
        assert process.wait() == -signal.SIGKILL
    assert scene.left(stage)
    stage.calendar.advance(LEASES_OVER)
    with ExitStack() as roles:
        for name in scene.then or (scene.role,):
            roles.enter_context(stage.start(name))
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


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("point", "name"), AUDITS, ids=[f"{point}-{name}" for point, name in AUDITS])
def test_an_audit_that_was_killed_is_made_again(
    stage: Stage, database: Database, point: CrashPoint, name: str
) -> None:
    """Once its lease is over; what it saw broken, and told nobody, is seen again, and is told until it is mended."""
    engine = database.engine
    stage.world.adjust(500)
    stage.world.make_org(2, 300)
    execute_as(database.admin_url, "UPDATE accounts SET transaction_count = 9 WHERE org_id = 2")
    # Somebody else has the other pass in hand, and finds nothing.
    other = claim_pass(
        engine,
        CHANGES if name == WHOLE else WHOLE,
        stage.world.clock(),
        every=timedelta(),
        rest=0,
        lease=timedelta(days=1),
    )
    assert other is not None
    with stage.start("jobs", point) as process:
        assert process.wait(LIMIT_S) == -signal.SIGKILL
    standing = read_standing(engine)
    assert (set(standing.violations.values()), standing.finished_at[name]) == ({0}, None)
    vouched = [each.org_id for each in stage.world.rows("SELECT org_id FROM audited_accounts")]
    assert vouched == ([1] if name == CHANGES else [])
    stage.calendar.advance(CHANGES_LEASE if name == CHANGES else WHOLE_LEASE)
    with stage.start("jobs"):
        wait_until(lambda: read_standing(engine).violations["transactions_counted"] == 1, limit_s=LIMIT_S)
        assert read_standing(engine).finished_at[name] is not None
        execute_as(database.admin_url, "UPDATE accounts SET transaction_count = 1 WHERE org_id = 2")
        release_pass(engine, other, stage.world.clock())
        stage.calendar.advance(CHANGES_EVERY)
        wait_until(lambda: set(read_standing(engine).violations.values()) == {0}, limit_s=LIMIT_S)
    stage.world.mend_gates()
    stage.world.assert_sound()
