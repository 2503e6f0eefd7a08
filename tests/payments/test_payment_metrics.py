"""What Prometheus is told of payments: declines by code, open attempts with their age, paused reloads, where events came from."""

import threading
from typing import Any

import pytest
from prometheus_client import REGISTRY

from metering.rules.stripe_codes import KNOWN_CODES, known_code
from metering.sandbox.stripe.faults import RequestFault
from tests.payments.reload_world import ReloadWorld
from tests.payments.test_reload_declines import failing
from tests.payments.world import World
from workers.charges_standing import TOLD_FOR_S, ChargesCollector

Samples = dict[tuple[str, ...], float]


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def declines(kind: str, code: str) -> float:
    return counted("metering_declines_total", kind=kind, code=code)


def told(collector: ChargesCollector) -> Samples:
    """By metric and label values."""
    return {
        (metric.name.removeprefix("metering_"), *sample.labels.values()): sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }


def test_a_declined_reload_is_counted_once_whatever_tells_of_it(reloading: ReloadWorld) -> None:
    before = declines("auto_reload", "insufficient_funds")
    failing(reloading, "insufficient_funds")
    reloading.work()
    for _ in range(2):  # its webhooks, the list, and the cancelling all say it again
        reloading.deliver(*reloading.events("payment_intent.*"))
        reloading.read_events()
        reloading.reconcile()
    assert declines("auto_reload", "insufficient_funds") == before + 1


def test_a_declined_top_up_is_counted_with_the_kind_of_its_attempt(world: World) -> None:
    before = declines("top_up", "lost_card")
    method = world.save_card()
    world.sandbox.fail_card(method, decline_code="lost_card")
    world.top_up(1_000)
    world.deliver(*world.events("payment_intent.*"))
    assert declines("top_up", "lost_card") == before + 1


def test_a_decline_without_a_payment_intent_is_counted(world: World) -> None:
    before = declines("top_up", "insufficient_funds")
    world.save_card()
    world.sandbox.set_fault(RequestFault.CARD_ERROR, operation="payment_intents.create", count=1)
    world.top_up()
    assert declines("top_up", "insufficient_funds") == before + 1


def test_a_code_that_nobody_knows_makes_no_label(reloading: ReloadWorld) -> None:
    before = declines("auto_reload", "other")
    failing(reloading, "made_up_by_a_bank")
    reloading.work()
    assert declines("auto_reload", "other") == before + 1
    assert all(known_code(code) == code for code in KNOWN_CODES)


def test_open_attempts_are_told_with_the_age_of_the_oldest(reloading: ReloadWorld) -> None:
    collector = ChargesCollector(reloading.engine)
    collector.read(threading.Event())
    assert told(collector)["attempts_open", "auto_reload"] == 0
    assert told(collector)["attempts_oldest_open_seconds", "auto_reload"] == 0

    reloading.sandbox.set_fault(RequestFault.ERROR_BEFORE, operation="payment_intents.*", count=None)
    reloading.adjust(2_000)
    reloading.enable()
    reloading.call(2_000)
    reloading.work()
    reloading.clock.move(seconds=100)
    collector.read(threading.Event())

    found = told(collector)
    assert found["attempts_open", "auto_reload"] == 1
    assert 100 <= found["attempts_oldest_open_seconds", "auto_reload"] < 130
    assert (found["attempts_open", "top_up"], found["attempts_oldest_open_seconds", "top_up"]) == (0, 0)
    assert found["auto_reload_orgs",] == 1


def test_paused_reloads_are_told_by_code_while_they_are_in_force(reloading: ReloadWorld) -> None:
    collector = ChargesCollector(reloading.engine)
    failing(reloading, "insufficient_funds")
    reloading.work()
    collector.read(threading.Event())
    assert told(collector)["auto_reload_paused_orgs", "insufficient_funds"] == 1
    reloading.clock.move(hours=2)
    collector.read(threading.Event())
    assert ("auto_reload_paused_orgs", "insufficient_funds") not in told(collector)


def test_what_was_read_too_long_ago_is_not_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = ChargesCollector(world.engine)
    assert told(collector) == {}
    collector.read(threading.Event())
    assert told(collector)
    later_s = collector._read.told_until_s + 1 if collector._read else 0.0
    assert TOLD_FOR_S < 300
    monkeypatch.setattr("workers.charges_standing.time.monotonic", lambda: later_s)
    assert told(collector) == {}


@pytest.mark.parametrize("source", ["webhook", "list"])
def test_events_are_counted_by_where_they_came_from(world: World, source: str) -> None:
    labels: dict[str, Any] = {"source": source, "outcome": "changed"}
    world.save_card()
    world.top_up(1_000)
    before = sum(
        counted("metering_stripe_events_total", source=source, outcome=each) for each in ("changed", "known")
    )
    if source == "webhook":
        world.deliver(*world.events("payment_intent.succeeded"))
    else:
        world.clock.move(seconds=60)
        world.read_events()
    after = sum(
        counted("metering_stripe_events_total", source=source, outcome=each) for each in ("changed", "known")
    )
    assert after == before + 1, labels
