"""The verdict on a demo: does all that happened agree with all that should have?"""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import redis
from rich.console import Console
from sqlalchemy import Engine

from db.audit.full import run_audit
from db.ledger.balances import read_balances
from metering.console.errors import quoted
from metering.console.output import counted, shown_path
from metering.rules.gates import GateState, SignalType
from metering.rules.money import format_usd
from metering.sandbox.customers.cardholders import Cardholders
from metering.sandbox.customers.operator_credits import OperatorCredits
from metering.sandbox.customers.operator_suspension import OperatorSuspension
from metering.sandbox.customers.simulation import Customers
from metering.sandbox.telephony.admission_log import AdmissionLog
from metering.sandbox.telephony.signal_history import (
    LoggedSignal,
    Position,
    ReloadMessage,
    read_log,
    read_reload_log,
)
from metering.sandbox.telephony.signal_listener import SignalListener
from metering.sandbox.telephony.simulation import Telephony
from metering.sandbox.telephony.switch import Switch
from metering.signals.gates import Gates
from metering.trials.consistency import (
    by_org,
    refused_while_suspended,
    wrong_admissions,
    wrong_gates,
    wrong_signals,
)
from metering.trials.demo.money import charges_sentences, read_money, wrong_money
from metering.trials.demo.output import say_line
from metering.trials.demo.snapshot import push_to_gate_s
from metering.trials.demo.summary import overspending_table, push_to_gate_sentence, summary, why
from metering.trials.exhaustions import Exhaustions, explain, paired
from metering.trials.outcome import Outcome, differences
from workers.stream import backlog

INTERRUPTED: Final = 130
"""The exit status of what Ctrl-C ended."""
IN_CONTAINERS: Final = "docker compose --env-file demo.env run --rm operator"
"""How a command is run beside the demo in containers."""
MAX_NAMED: Final = 20
HEAR_LIMIT_S: Final = 10.0
"""How long a signal that is in the log may take to be heard."""


@dataclass(frozen=True, slots=True)
class Run:
    """What there is to judge once the roles have stopped."""

    telephony: Telephony
    switch: Switch
    operator_credits: OperatorCredits
    suspensions: Sequence[OperatorSuspension]
    customers: Customers
    cardholders: Cardholders
    listener: SignalListener
    log_began_at: Position
    """Where the log of signals ended before there were any about this run's orgs."""
    outcome: Outcome
    """Not read yet: in the end it is read in one go, and not piece by piece as for the screen."""
    highest_lag: int
    drained: bool
    gates_behind: int
    """Gates that didn't say what their balance says when the last event had been billed."""


def conclude(
    out: Console, engine: Engine, client: redis.Redis, run: Run, *, interrupted: bool, beside: bool = False
) -> int:
    """Compare everything, audit the ledger, say what was found, and give the exit status.

    `beside` an installation: its roles run on, and who reads this is to go on with it.
    """
    log = _heard_log(client, run)
    exhaustions = Exhaustions(run.telephony.org_ids)
    with engine.connect() as connection:
        run.outcome.read(connection, run.switch.stream_ids)
        exhaustions.read(connection)
    _tell(out, run, log, read_reload_log(client, run.log_began_at, run.telephony.org_ids), exhaustions)
    problems = _audited(out, engine) + _broken(run)
    if run.drained:
        problems += _compared(out, run)
        problems += _money_compared(out, engine, run)
        problems += _gates_compared(out, engine, client, run, log, exhaustions)
    else:
        waiting = counted(backlog(client).length, "event")
        for_whom = "the installation's meters" if beside else f"`{_program()} up`"
        say_line(out, f"Nothing was compared: in the stream {waiting} wait still, for {for_whom}.")
    for problem in problems[:MAX_NAMED]:
        say_line(out, f"  {problem}")
    if len(problems) > MAX_NAMED:
        say_line(out, f"  And {len(problems) - MAX_NAMED:,} more.")
    if problems:
        return 1
    if interrupted:
        return INTERRUPTED
    if not run.drained:
        return 1
    suggest(out, run.telephony.missing_tier, beside=beside)
    return 0


def _heard_log(client: redis.Redis, run: Run) -> list[LoggedSignal]:
    """The run's signals as the log has them, once as many were heard, or that takes too long."""
    deadline_s = time.monotonic() + HEAR_LIMIT_S
    while True:
        log = read_log(client, run.log_began_at, set(run.telephony.org_ids))
        heard = run.listener.heard(run.telephony.org_ids)
        if len(heard) >= len(log) or run.listener.error or time.monotonic() > deadline_s:
            return log
        time.sleep(0.05)


def _tell(
    out: Console, run: Run, log: list[LoggedSignal], reloads: list[ReloadMessage], exhaustions: Exhaustions
) -> None:
    """The summary: what was billed, what gates did to calls, and how far below zero orgs went, and why."""
    switch, admissions = run.switch, run.switch.admissions
    out.print()
    out.print(
        summary(
            switch.record, run.outcome, took_s=switch.took_s, highest_lag=run.highest_lag, drained=run.drained
        )
    )
    refused = admissions.directions
    say_line(
        out,
        f"\n{counted(len(admissions.calls), 'call')} started; refused by a closed gate: "
        f"{refused['inbound']:,} inbound, {refused['outbound']:,} outbound.\n"
        f"Refills by an operator: {run.operator_credits.made}, {format_usd(run.operator_credits.cents)} USD.",
    )
    for suspension in run.suspensions:
        if suspension.made:
            say_line(out, _suspension_sentence(suspension.plan.org_id, admissions, log))
    for sentence in charges_sentences(run.customers, reloads):
        say_line(out, sentence)
    if switch.running:
        say_line(
            out, f"{counted(switch.running, 'call')} ran still at the end, and their events were not pushed."
        )
    worst = []
    for org_id, closed in exhaustions.of.items():
        said = ((each.message, each.position) for each in log if each.message.org_id == org_id)
        closed_at = {id(exhaustion): position for exhaustion, position in paired(closed, said)}
        lowest = min(closed, key=lambda each: each.lowest_cents)
        worst.append(explain(lowest, closed_at.get(id(lowest)), admissions, switch.began_at_s))
    if worst:
        worst.sort(key=lambda each: each.lowest_cents)
        out.print()
        out.print(overspending_table(worst))
        say_line(out, why(worst[0]))
    if took_s := push_to_gate_s(exhaustions, run.listener.heard(run.telephony.org_ids), admissions):
        say_line(out, push_to_gate_sentence(took_s))


def _suspension_sentence(org_id: int, admissions: AdmissionLog, log: Sequence[LoggedSignal]) -> str:
    refused = refused_while_suspended(admissions, log, org_id)
    return f"An operator suspended org {org_id} for a while, whatever its balance: {counted(refused, 'call')} refused."


def _audited(out: Console, engine: Engine) -> list[str]:
    report = run_audit(engine)
    audited = (
        f"{counted(report.counts['transactions'], 'transaction')} of {counted(report.counts['orgs'], 'org')}"
    )
    say_line(out, f"\nAudit of {audited}: {'passed' if report.passed else 'FAILED'}.")
    return [
        f"Audit, {violation.invariant}, org {violation.org_id}: {violation.detail}."
        for violation in report.violations
    ]


def _broken(run: Run) -> list[str]:
    """What kept the simulation itself from being whole."""
    admissions = run.switch.admissions
    problems = []
    if run.switch.error is not None:
        problems.append(f"Telephony could not push on: {quoted(run.switch.error)}.")
    if admissions.error is not None:
        problems.append(
            f"Telephony refused {counted(admissions.unanswered, 'call')} because it could not ask the gate:"
            f" {quoted(admissions.error)}."
        )
    if run.listener.error is not None:
        problems.append(f"The signals could not be heard on: {quoted(run.listener.error)}.")
    if run.operator_credits.error is not None:
        problems.append(f"The operator could not go on: {quoted(run.operator_credits.error)}.")
    problems += [
        f"The operator could not suspend or resume an org: {quoted(each.error)}."
        for each in run.suspensions
        if each.error is not None
    ]
    if run.customers.error is not None:
        problems.append(f"The customers could not go on: {quoted(run.customers.error)}.")
    return problems


def _compared(out: Console, run: Run) -> list[str]:
    """The ledger beside telephony's record."""
    found = differences(run.switch.record, run.outcome)
    say_line(
        out, f"Ledger and telephony's record {'DIFFER' if found else 'agree, for every org and to the cent'}."
    )
    return found


def _money_compared(out: Console, engine: Engine, run: Run) -> list[str]:
    """The ledger beside what Stripe, or its stand-in, says that it holds, and beside what customers were told."""
    money = read_money(engine, run.cardholders, run.telephony.org_ids)
    found = wrong_money(money, run.customers.topped_up)
    held = format_usd(sum(each.stripe_cents for each in money))
    say_line(
        out,
        f"{run.cardholders.where} holds {held} USD of {counted(len(money), 'customer')}:\n"
        f"the ledger {'DIFFERS' if found else 'says the same, for each to the cent'}.",
    )
    return found


def _gates_compared(
    out: Console,
    engine: Engine,
    client: redis.Redis,
    run: Run,
    log: list[LoggedSignal],
    exhaustions: Exhaustions,
) -> list[str]:
    """Gates beside balances, signals beside both, and telephony's decisions beside the signals."""
    org_ids = run.telephony.org_ids
    balances = read_balances(engine, org_ids)
    logged = by_org(said.message for said in log)
    heard = by_org(each.message for each in run.listener.heard(org_ids))
    found = wrong_gates(Gates(client).read(org_ids), balances)
    found += wrong_signals(logged, heard, exhaustions.of, balances)
    found += wrong_admissions(run.switch.admissions, log)
    exhausted = sum(said.message.type is SignalType.EXHAUSTED for said in log)
    opened = sum(said.message.leads_to is GateState.OPEN for said in log)
    closed = sum(
        one.leads_to is GateState.OPEN is not two.leads_to
        for said in logged.values()
        for one, two in pairwise(said)
    )
    if found:
        say_line(out, "Gates, signals, balances and telephony DISAGREE.")
    else:
        say_line(
            out,
            f"Gates closed {closed:,} times and opened {opened:,} times, the first time included:\n"
            "one signal for each change, in turn for every org, the same in log and channel. No call\n"
            "started while its gate was closed, none was refused while it was open. In the\n"
            "end every gate says what its balance says.",
        )
    if run.gates_behind:
        say_line(
            out,
            f"{counted(run.gates_behind, 'gate')} differed from the balance when the last call had been billed; "
            f"{'not all were' if wrong_gates(Gates(client).read(org_ids), balances) else 'the reconciler has'} mended.",
        )
    if exhaustions.count > exhausted:
        say_line(
            out,
            f"{counted(exhaustions.count - exhausted, 'time')} an org was exhausted while it was suspended,"
            " or refilled before a meter came to say so.",
        )
    return found


def suggest(out: Console, missing_tier: str, *, beside: bool) -> None:
    """Say what to try next."""
    if beside:
        program = IN_CONTAINERS
        begin = "The installation runs on. To go on, try in another terminal, in the same directory:\n"
    else:
        program = _program()
        begin = (
            "To go on, start the servers and a meter again, and try the rest in another terminal:\n\n"
            f"  {program} up"
        )
    say_line(
        out,
        f"""
{begin}
  {program} org list
  {program} attempt list
  {program} rejected list --reason unknown_tier
  {program} tier set {missing_tier} 0.20
  {program} rejected replay --reason unknown_tier
  {program} audit""",
    )


def _program() -> str:
    """How to call this program from here."""
    called = Path(sys.argv[0])
    if called.name != "metering":
        return f"{shown_path(Path(sys.executable))} -m metering"
    return "metering" if shutil.which("metering") else shown_path(called)
