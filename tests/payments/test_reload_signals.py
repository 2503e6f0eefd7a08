"""What is said of reloads: each once per cause, skips when the reason changes, and what was left by the reconciler."""

from typing import Any

import pytest

from metering.runtime.crashpoints import CrashPoint
from metering.runtime.names import SIGNALS_LOG, gate_key
from metering.runtime.redis_connection import NotPrimaryError
from metering.signals.gates import Gates
from metering.signals.reload_signals import ReloadSignals
from tests.payments.crashing import crashing_at
from tests.payments.reload_world import AMOUNT, MINIMUM, ReloadWorld


def test_a_success_and_a_failure_are_said_once_with_what_they_are_about(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    method = reloading.enable()
    assert method is not None
    reloading.call(1)
    reloading.work()
    reloading.deliver_all()
    reloading.clock.move(minutes=1)
    reloading.sandbox.fail_card(method, decline_code="insufficient_funds")
    reloading.call(AMOUNT)
    reloading.work()
    reloading.deliver_all()
    reloading.reconcile()

    succeeded, failed, skipped = reloading.signals()
    first, second = reloading.reloads()
    assert {name: succeeded[name] for name in ("type", "attempt_id", "amount_cents", "at")} == {
        "type": "auto_reload.succeeded",
        "attempt_id": str(first.id),
        "amount_cents": AMOUNT,
        "at": "2026-04-20T12:00:00.000Z",
    }
    assert {name: failed[name] for name in failed if name not in {"org_id", "id"}} == {
        "type": "auto_reload.failed",
        "attempt_id": str(second.id),
        "amount_cents": AMOUNT,
        "code": "insufficient_funds",
        "paused": True,
        "paused_until": "2026-04-20T13:01:00.000Z",
        "at": "2026-04-20T12:01:00.000Z",
    }
    assert (skipped["type"], skipped["reason"]) == ("auto_reload.skipped", "paused")
    assert succeeded["id"] < failed["id"] < skipped["id"]


def test_a_skip_is_said_when_its_reason_changes_and_not_for_every_call(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    method = reloading.enable(limit=0)
    assert method is not None
    for _ in range(5):
        reloading.call(1)
        reloading.reconcile()
    assert reloading.said() == ["skipped monthly_limit"]
    reloading.detach(method)
    reloading.call(1)
    assert reloading.said()[1:] == ["skipped no_payment_method"]
    reloading.save_card()
    reloading.call(1)
    assert reloading.said()[2:] == ["skipped monthly_limit"]

    reloading.adjust(MINIMUM)  # no longer wanted: whatever comes next is news
    reloading.call(MINIMUM)
    assert reloading.said()[3:] == ["skipped monthly_limit"]
    reloading.settings(enabled=False)
    reloading.call(1)
    reloading.settings(enabled=True)
    assert reloading.said()[4:] == ["skipped monthly_limit"]


@pytest.mark.parametrize("org_state", ["disabled", "above the minimum", "open"])
def test_what_hinders_nothing_is_not_said(reloading: ReloadWorld, org_state: str) -> None:
    reloading.adjust(2 * MINIMUM)
    reloading.enable()
    if org_state == "disabled":
        reloading.settings(enabled=False)
    reloading.call(1 if org_state == "above the minimum" else 2 * MINIMUM)
    reloading.call(1)
    assert reloading.said() == []


def test_what_a_crash_left_unsaid_is_said_by_the_reconciler(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable(limit=AMOUNT)
    reloading.call(1)
    with crashing_at(CrashPoint.SETTLE_AFTER_COMMIT):
        reloading.work()
    assert reloading.said() == []
    assert reloading.post([(1, AMOUNT)]).reloads.signals
    assert reloading.said() == []

    reloading.publish_overdue()
    reloading.publish_overdue()

    assert reloading.said() == ["succeeded", "skipped monthly_limit"]


def test_what_redis_could_not_take_is_said_by_the_reconciler(reloading: ReloadWorld) -> None:
    reloading.adjust(MINIMUM)
    reloading.enable()
    reloading.client.delete(SIGNALS_LOG)
    reloading.client.set(SIGNALS_LOG, "somebody else's")
    reloading.call(1)
    reloading.work()
    assert reloading.statuses() == ["succeeded"]
    reloading.client.delete(SIGNALS_LOG)

    reloading.publish_overdue()

    assert reloading.said() == ["succeeded"]


def test_where_redis_has_just_moved_its_new_place_is_told_at_once(
    reloading: ReloadWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle connection hears of a switch-over by its next command only: that must not cost the signal ten seconds."""
    reloading.adjust(MINIMUM)
    reloading.enable()
    demoted = [True, True]
    for owner, name in ((ReloadSignals, "publish"), (Gates, "follow")):
        done = getattr(owner, name)

        def say(*told: Any, done: Any = done) -> Any:
            if demoted:
                demoted.pop()
                raise NotPrimaryError("it says that it is a replica")
            return done(*told)

        monkeypatch.setattr(owner, name, say)
    reloading.call(1)
    reloading.work()

    assert demoted == []
    assert reloading.said() == ["succeeded"]
    assert reloading.client.hget(gate_key(1), "balance_cents") == str(reloading.balance()).encode()
