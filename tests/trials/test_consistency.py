"""Each way in which gates, signals, telephony and the ledger can disagree is found, and names the org."""

from itertools import count

import pytest

from metering.rules.gates import Balance, GateState, SignalType
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.calls import Attempt
from metering.sandbox.telephony.signal_history import LoggedSignal, Message
from metering.signals.gates import Gate
from metering.trials.consistency import (
    by_org,
    refused_while_suspended,
    wrong_admissions,
    wrong_gates,
    wrong_signals,
)
from metering.trials.exhaustions import Exhaustion

RESTORED, EXHAUSTED = SignalType.RESTORED, SignalType.EXHAUSTED
SUSPENDED, RESUMED = SignalType.SUSPENDED, SignalType.RESUMED
CLOSED_ONCE = {7: [Exhaustion(7, 1, -1, -1)]}
EMPTY = [Balance(7, -1, 9)]


def said(*types: SignalType) -> list[Message]:
    """One org's signals, in rising versions."""
    states = {SUSPENDED: GateState.SUSPENDED, RESUMED: GateState.EXHAUSTED}
    return [
        Message(each, 7, 1 if each is RESTORED else -1, version, states.get(each))
        for version, each in enumerate(types, 1)
    ]


def logged(*types: SignalType) -> list[LoggedSignal]:
    """The same in the log, in the milliseconds 10, 20, ..."""
    return [LoggedSignal((ms, 0), message) for ms, message in zip(count(10, 10), said(*types), strict=False)]


def test_a_gate_that_differs_in_anything_is_named() -> None:
    balances = [Balance(org_id, -3, 5) for org_id in (1, 2, 3, 4, 5)]
    gates = [
        Gate(1, "exhausted", -3, 5),
        Gate(2, "open", -3, 5),
        Gate(3, "exhausted", -2, 5),
        Gate(4, "exhausted", -3, 4),
        Gate(5, None, None, None),
    ]
    named = [problem.split("'")[0] for problem in wrong_gates(gates, balances)]
    assert named == ["Org 2", "Org 3", "Org 4", "Org 5"]


def test_signals_in_turn_are_fine() -> None:
    messages = {7: said(RESTORED, EXHAUSTED)}
    assert wrong_signals(messages, messages, CLOSED_ONCE, EMPTY) == []


def test_a_suspension_is_in_turn_too() -> None:
    messages = {7: said(RESTORED, SUSPENDED, RESUMED)}
    assert wrong_signals(messages, messages, CLOSED_ONCE, EMPTY) == []
    suspended = {7: said(RESTORED, SUSPENDED)}
    assert wrong_signals(suspended, suspended, CLOSED_ONCE, [Balance(7, 5, 9, suspended=True)]) == []


def test_an_exhaustion_that_was_over_before_anybody_said_so_is_fine() -> None:
    messages = {7: said(RESTORED)}
    assert wrong_signals(messages, messages, CLOSED_ONCE, [Balance(7, 5, 9)]) == []


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (
            said(RESTORED, EXHAUSTED, EXHAUSTED),
            "don't follow: balance.exhausted at version 3, of a gate that was exhausted",
        ),
        (
            said(RESTORED, RESTORED, EXHAUSTED),
            "don't follow: balance.restored at version 2, of a gate that was open",
        ),
        (said(EXHAUSTED), "don't follow: balance.exhausted at version 1, of a gate that was exhausted"),
        (said(RESTORED), "the last is balance.restored; the org is exhausted, at -1 cents"),
        (
            said(SUSPENDED, RESTORED),
            "don't follow: balance.restored at version 2, of a gate that was suspended",
        ),
        (said(RESTORED, SUSPENDED), "the last is org.suspended; the org is exhausted, at -1 cents"),
        (said(RESTORED, EXHAUSTED, RESTORED, EXHAUSTED), "said 2 times that it was exhausted"),
        (said(RESTORED, EXHAUSTED)[::-1] + said(RESTORED, EXHAUSTED), "out of order: version 1 after 2"),
    ],
)
def test_signals_out_of_turn_are_named(messages: list[Message], problem: str) -> None:
    found = wrong_signals({7: messages}, {7: messages}, CLOSED_ONCE, EMPTY)
    assert any(each.startswith("Org 7's signals") and problem in each for each in found), found


def test_a_signal_that_was_not_heard_is_named() -> None:
    messages = said(RESTORED, EXHAUSTED)
    [problem] = wrong_signals({7: messages}, {7: messages[:1]}, CLOSED_ONCE, EMPTY)
    assert problem.startswith("Org 7's signals: 1 heard on Pub/Sub, 2 in the log")


def test_no_signals_of_an_org_with_money_are_named() -> None:
    [problem] = wrong_signals({}, {}, {}, [Balance(7, 5, 1)])
    assert "the last is none" in problem


@pytest.mark.parametrize(
    ("asked_at", "is_open"),
    [((9, 9), False), ((10, 0), True), ((19, 5), True), ((20, 0), False), ((25, 0), False), ((31, 0), True)],
)
def test_each_decision_is_judged_by_the_newest_signal_before_it(
    asked_at: tuple[int, int], is_open: bool
) -> None:
    log = logged(RESTORED, EXHAUSTED, RESTORED)
    attempt = Attempt(0, 7, 1, "inbound", 1)
    let_in, refused = AdmissionLog(), AdmissionLog()
    assert let_in.decide(attempt, b"open", asked_at)
    assert not refused.decide(attempt, b"exhausted", asked_at)
    assert [problem[:16] for problem in wrong_admissions(let_in, log)] == (
        [] if is_open else ["Org 7: 1 calls s"]
    )
    assert [problem[:21] for problem in wrong_admissions(refused, log)] == (
        ["Org 7: 1 calls were r"] if is_open else []
    )


def test_calls_that_a_suspended_gate_refused_are_counted() -> None:
    log = logged(RESTORED, SUSPENDED, RESUMED)
    admissions = AdmissionLog()
    for org_id, ms in ((7, 15), (7, 25), (7, 29), (7, 35), (8, 25)):
        attempt = Attempt(1.0, org_id, 1, "inbound", 3.0)
        admissions.decide(attempt, b"suspended", (ms, 0))
    assert refused_while_suspended(admissions, log, 7) == 2


def test_signals_are_sorted_by_org_in_their_order() -> None:
    one, two = Message(RESTORED, 1, 5, 1), Message(RESTORED, 2, 5, 1)
    later = Message(EXHAUSTED, 1, 0, 2)
    assert by_org([one, two, later]) == {1: [one, later], 2: [two]}
