"""Where gates, signals, telephony and the ledger disagree: sentences that name the org; none if all is well."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from metering.rules.gates import MISSING_GATE, Balance, GateState, SignalType, signal_type
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.signal_history import LoggedSignal, Message, Position
from metering.signals.gates import Gate
from metering.trials.exhaustions import Exhaustion


def by_org(messages: Iterable[Message]) -> dict[int, list[Message]]:
    """Messages by the org that they are about, in their order."""
    found: dict[int, list[Message]] = {}
    for message in messages:
        found.setdefault(message.org_id, []).append(message)
    return found


def wrong_gates(gates: Sequence[Gate], balances: Sequence[Balance]) -> list[str]:
    """Gates that don't say what their org's balance says."""
    held = {gate.org_id: gate for gate in gates}
    return [
        f"Org {balance.org_id}'s gate says {gate.state} at {gate.balance_cents} cents, version {gate.version};"
        f" its balance says {balance.gate_state} at {balance.balance_cents}, version {balance.version}."
        for balance in balances
        if not (gate := held[balance.org_id]).follows(balance)
    ]


def wrong_signals(
    logged: Mapping[int, Sequence[Message]],
    heard: Mapping[int, Sequence[Message]],
    exhaustions: Mapping[int, Sequence[Exhaustion]],
    balances: Sequence[Balance],
) -> list[str]:
    """Signals that don't follow each other as they must, or don't agree in number, by org.

    The log and the channel must say the same. They may say less often than the ledger that an org was exhausted, since a meter
    says what has become of a whole batch, but never more often.
    """
    found = []
    for balance in balances:
        org_id = balance.org_id
        said = logged.get(org_id, [])
        name = f"Org {org_id}'s signals"
        found += [f"{name} {problem}." for problem in _out_of_turn(said)]
        if list(heard.get(org_id, [])) != list(said):
            found.append(
                f"{name}: {len(heard.get(org_id, []))} heard on Pub/Sub, {len(said)} in the log, and they differ."
            )
        state = said[-1].leads_to if said else MISSING_GATE
        if state is not balance.gate_state:
            last = said[-1].type.value if said else "none"
            found.append(
                f"{name}: the last is {last}; the org is {balance.gate_state}, at {balance.balance_cents} cents."
            )
        exhausted = sum(message.type is SignalType.EXHAUSTED for message in said)
        if exhausted > len(exhaustions.get(org_id, [])):
            found.append(
                f"{name} said {exhausted} times that it was exhausted; by the ledger that was"
                f" {len(exhaustions.get(org_id, []))} times."
            )
    return found


def _out_of_turn(said: Sequence[Message]) -> list[str]:
    """What is wrong with the order of one org's signals: each changes the state, from exhausted on, in rising versions."""
    problems = []
    state = MISSING_GATE
    for each in said:
        if each.leads_to is state or each.type is not signal_type(state, each.leads_to):
            problems.append(
                f"don't follow: {each.type} at version {each.version}, of a gate that was {state}"
            )
        state = each.leads_to
    for one, next_one in pairwise(said):
        if one.version >= next_one.version:
            problems.append(f"are out of order: version {next_one.version} after {one.version}")
    return problems


def wrong_admissions(admissions: AdmissionLog, log: Sequence[LoggedSignal]) -> list[str]:
    """Calls that were let in while their org's newest signal said that its gate was closed, or refused while open, by org.

    Exact, however slow the machine: each asking of a gate has its place among the signals.
    """
    changes: dict[int, list[LoggedSignal]] = {}
    for said in log:
        changes.setdefault(said.message.org_id, []).append(said)

    def is_open(org_id: int, asked_at: Position) -> bool:
        return _state_at(changes.get(org_id, []), asked_at) is GateState.OPEN

    let_in = Counter(
        call.org_id for call in admissions.calls.values() if not is_open(call.org_id, call.asked_at)
    )
    refused = Counter(call.org_id for call in admissions.refusals if is_open(call.org_id, call.asked_at))
    return [
        f"Org {org_id}: {number} calls started while its gate should have been closed, by its last signal."
        for org_id, number in sorted(let_in.items())
    ] + [
        f"Org {org_id}: {number} calls were refused while its gate should have been open, by its last signal."
        for org_id, number in sorted(refused.items())
    ]


def refused_while_suspended(admissions: AdmissionLog, log: Sequence[LoggedSignal], org_id: int) -> int:
    """How many calls an org's gate refused while it was suspended, by its last signal."""
    said = [each for each in log if each.message.org_id == org_id]
    return sum(
        each.org_id == org_id and _state_at(said, each.asked_at) is GateState.SUSPENDED
        for each in admissions.refusals
    )


def _state_at(said: Sequence[LoggedSignal], asked_at: Position) -> GateState:
    """The state of an org's gate at a place in the log, by the signals about it."""
    before = [each for each in said if each.position <= asked_at]
    return before[-1].message.leads_to if before else MISSING_GATE
