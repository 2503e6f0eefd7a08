"""Named places between two effects, at which a test can kill or freeze a process.

`METERING_CRASH_POINT=meter.after_commit` kills the process with SIGKILL when it first reaches that point;
`meter.after_commit:3` the third time; `meter.after_lock:1:stop` freezes it with SIGSTOP instead. Unset, as always outside
tests, reaching a point is one call of an empty function.
"""

import os
import signal
import threading
from collections.abc import Callable
from enum import StrEnum

ENVIRONMENT_VARIABLE = "METERING_CRASH_POINT"


class CrashPoint(StrEnum):
    """Every crash point there is; the tests kill a process at each."""

    METER_AFTER_READ = "meter.after_read"
    METER_AFTER_PARSE = "meter.after_parse"
    LEDGER_AFTER_LOCK = "ledger.after_lock"
    LEDGER_AFTER_WRITE = "ledger.after_write"
    METER_BEFORE_COMMIT = "meter.before_commit"
    METER_AFTER_COMMIT = "meter.after_commit"
    METER_BEFORE_ACK = "meter.before_ack"
    METER_AFTER_ACK = "meter.after_ack"
    RELOADS_AFTER_ENQUEUE = "reloads.after_enqueue"
    SETTLE_AFTER_WRITE = "settle.after_write"
    CHARGE_BEFORE_SEND = "charge.before_send"
    CHARGE_AFTER_SEND = "charge.after_send"
    CHARGE_BEFORE_CANCEL = "charge.before_cancel"
    CHARGE_AFTER_CANCEL = "charge.after_cancel"
    SETTLE_AFTER_COMMIT = "settle.after_commit"
    FOLLOW_AFTER_COMMIT = "follow.after_commit"
    FOLLOW_AFTER_GATE = "follow.after_gate"
    FOLLOW_BEFORE_ENQUEUE = "follow.before_enqueue"
    CHARGE_BEFORE_ACK = "charge_actor.before_ack"
    TOP_UP_AFTER_ATTEMPT = "top_up.after_attempt"
    TOP_UP_BEFORE_ANSWER = "top_up.before_answer"
    TOP_UP_AFTER_KEEP = "top_up.after_keep"
    TOP_UP_BEFORE_MARK = "top_up.before_mark"
    CUSTOMER_AFTER_CREATE = "customer.after_create"
    CARD_AFTER_DEFAULT = "card.after_default"
    WEBHOOK_BEFORE_ANSWER = "webhook.before_answer"
    EVENTS_BEFORE_ADVANCE = "events.before_advance"
    SIGNALS_AFTER_PUBLISH = "signals.after_publish"
    RECONCILER_BEFORE_WRITE = "gate_reconciler.before_write"
    RECONCILER_AFTER_RAISE = "gate_reconciler.after_raise"
    REPRICE_AFTER_ORG = "reprice.after_org"
    AUDIT_AFTER_PAGE = "audit.after_page"
    AUDIT_BEFORE_FINISH = "audit.before_finish"


def _pass(_point: CrashPoint) -> None:
    """What `reach` is when no crash point is armed."""


def armed(setting: str) -> Callable[[CrashPoint], None]:
    """What `reach` is when `setting` (`name[:occurrence[:kill|stop]]`) arms a crash point.

    Raises ValueError for a name, an occurrence or an action that doesn't exist, so that a test can't pass by a typing error.
    """
    name, _, rest = setting.partition(":")
    occurrence, _, action = rest.partition(":")
    target = CrashPoint(name)
    left = int(occurrence or "1")
    send = {"": signal.SIGKILL, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action]

    def strike(point: CrashPoint) -> None:
        nonlocal left
        if point is target:
            left -= 1
            if left == 0:
                # To this very thread: a signal to the process may let it run on for a while.
                signal.pthread_kill(threading.get_ident(), send)

    return strike


_setting = os.environ.get(ENVIRONMENT_VARIABLE)
reach: Callable[[CrashPoint], None] = armed(_setting) if _setting else _pass
