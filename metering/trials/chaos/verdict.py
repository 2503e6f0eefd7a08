"""Whether a run ended exact: the ledger beside producers' records, customers' answers and what Stripe holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import redis
from sqlalchemy import Connection, Engine, text

from db.audit.full import run_audit
from db.ledger.balances import read_balances
from metering.payments.audit import audit_against_stripe
from metering.payments.stripe_api import StripeApi
from metering.rules.payments import AttemptKind, Intent, IntentStatus
from metering.runtime.clock import Clock
from metering.sandbox.stripe.remote import control
from metering.signals.gates import Gates
from metering.trials.chaos.journal import CallKey, Cost, Pushed, Told, Wanted
from metering.trials.consistency import wrong_gates

_DEBITS: Final = text("""
    SELECT org_id, call_id, count(*) AS number, sum(billable_seconds) AS seconds, -sum(amount_cents) AS cents
    FROM transactions WHERE kind = 'debit' GROUP BY org_id, call_id
""")
_CREDITS: Final = text("""
    SELECT source_key, count(*) AS number, sum(amount_cents) AS cents FROM transactions WHERE kind = 'credit' GROUP BY source_key
""")
_REJECTED: Final = text("SELECT DISTINCT raw_sha256 FROM rejected_events")
_CUSTOMERS: Final = text("SELECT customer_id, org_id FROM stripe_customers")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the ledger is held against, and how to read it; nothing runs any more that would change it."""

    engine: Engine
    client: redis.Redis
    stripe: StripeApi
    stripe_url: str
    clock: Clock
    began_at: datetime
    starting_cents: Mapping[int, int]
    """What each org was given to begin with."""
    pushed: Sequence[Pushed]
    wanted: Wanted


@dataclass(slots=True)
class Verdict:
    """What was found. All but the first of each group must be 0."""

    events: int = 0
    """Different events that producers pushed, each at least once."""
    sent: int = 0
    """Entries that the stream took, repeats included."""
    calls: int = 0
    """Different calls among them that cost something."""
    billed_once: int = 0
    billed_twice: int = 0
    lost: int = 0
    billed_wrong: int = 0
    """Billed once, but not what they have to cost, or never pushed."""
    unbillable: int = 0
    rejections_lost: int = 0
    """Events that had to be rejected, and are kept nowhere."""
    charges: int = 0
    """At Stripe."""
    charged_cents: int = 0
    by_hand: int = 0
    """Of them, those that somebody has made in Stripe's dashboard."""
    credits: int = 0
    charged_twice: int = 0
    """Top-ups that were wanted once, and attempts, for which Stripe took money twice."""
    charged_again: int = 0
    """Top-ups whose repeat had to be taken for another one (`TopUp.forgotten`): both charges are credited."""
    not_charged: int = 0
    """Top-ups that customers were told had succeeded, and Stripe took nothing."""
    charged_though_declined: int = 0
    credits_lost: int = 0
    """Charges that are not credited."""
    credited_twice: int = 0
    credits_without_charge: int = 0
    balances_wrong: int = 0
    gates_wrong: int = 0
    audit_violations: int = 0
    stripe_violations: int = 0
    problems: list[str] = field(default_factory=list)
    """A sentence for each thing that is wrong."""

    @property
    def exact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def judge(evidence: Evidence) -> Verdict:
    """Compare everything. Raises what Postgres, Redis and Stripe's sandbox raise."""
    verdict = Verdict(problems=list(evidence.wanted.problems))
    intents = list(evidence.stripe.list_intents(since=evidence.began_at))
    with evidence.engine.connect() as connection:
        _judge_calls(verdict, connection, evidence.pushed)
        _judge_charges(verdict, connection, intents)
        _judge_top_ups(verdict, intents, evidence.wanted)
        _judge_balances(verdict, connection, evidence)
    _judge_gates(verdict, evidence)
    _audit(verdict, evidence)
    return verdict


def _judge_calls(verdict: Verdict, connection: Connection, producers: Sequence[Pushed]) -> None:
    expected: dict[CallKey, Cost] = {}
    rejected = {bytes(each) for each in connection.scalars(_REJECTED)}
    for pushed in producers:
        expected |= pushed.calls
        verdict.events += pushed.events
        verdict.sent += pushed.sent
        verdict.unbillable += len(pushed.unbillable) + len(pushed.contradictions)
        verdict.rejections_lost += len(pushed.unbillable - rejected)
        verdict.rejections_lost += sum(rejected.isdisjoint(pair) for pair in pushed.contradictions)
    verdict.calls = len(expected)
    billed = {(row.org_id, row.call_id): row for row in connection.execute(_DEBITS)}
    for key, cost in expected.items():
        row = billed.get(key)
        if row is None:
            verdict.lost += 1
            verdict.problems.append(f"Org {key[0]}'s call {key[1]} was pushed, and is not billed.")
        elif row.number > 1:
            verdict.billed_twice += 1
            verdict.problems.append(f"Org {key[0]}'s call {key[1]} is billed {row.number} times.")
        elif (row.seconds, row.cents) != (cost.minutes * 60, cost.cents):
            verdict.billed_wrong += 1
            verdict.problems.append(
                f"Org {key[0]}'s call {key[1]} is billed at {row.cents} cents; it costs {cost.cents}."
            )
        else:
            verdict.billed_once += 1
    never_pushed = billed.keys() - expected.keys()
    verdict.billed_wrong += len(never_pushed)
    verdict.problems += [
        f"Org {org_id}'s call {call_id} is billed, and was never pushed." for org_id, call_id in never_pushed
    ]
    if verdict.rejections_lost:
        verdict.problems.append(
            f"{verdict.rejections_lost} events that can't be billed are kept nowhere as rejected."
        )


def _judge_charges(verdict: Verdict, connection: Connection, intents: Sequence[Intent]) -> None:
    taken = {each.id: each for each in intents if each.status == IntentStatus.SUCCEEDED}
    verdict.charges = len(taken)
    verdict.charged_cents = sum(each.received_cents for each in taken.values())
    credited = {row.source_key: row for row in connection.execute(_CREDITS)}
    verdict.credits = sum(row.number for row in credited.values())
    for intent_id, intent in taken.items():
        row = credited.get(intent_id)
        if row is None or row.cents < intent.received_cents:
            verdict.credits_lost += 1
            verdict.problems.append(
                f"Org {intent.org_id}: {intent_id} of {intent.received_cents} cents is not credited."
            )
        elif row.number > 1 or row.cents > intent.received_cents:
            verdict.credited_twice += 1
            verdict.problems.append(f"Org {intent.org_id}: {intent_id} is credited {row.number} times.")
    for intent_id in credited.keys() - taken.keys():
        verdict.credits_without_charge += 1
        verdict.problems.append(f"{intent_id} is credited, and Stripe took nothing.")
    attempts = Counter(each.attempt_id for each in taken.values() if each.attempt_id is not None)
    verdict.by_hand = sum(each.attempt_id is None for each in taken.values())
    twice = [attempt_id for attempt_id, number in attempts.items() if number > 1]
    verdict.charged_twice += len(twice)
    verdict.problems += [
        f"Attempt {attempt_id} was charged {attempts[attempt_id]} times." for attempt_id in twice
    ]


def _judge_top_ups(verdict: Verdict, intents: Sequence[Intent], wanted: Wanted) -> None:
    """What customers were told, beside what Stripe took for it: no two top-ups of an org have the same amount."""
    taken = Counter(
        (each.org_id, each.amount_cents)
        for each in intents
        if each.kind is AttemptKind.TOP_UP and each.status == IntentStatus.SUCCEEDED
    )
    for top_up in wanted.top_ups:
        number = taken.pop((top_up.org_id, top_up.amount_cents), 0)
        name = f"Org {top_up.org_id}'s top-up of {top_up.amount_cents} cents"
        if number > 1 and top_up.forgotten:
            verdict.charged_again += number - 1
        elif number > 1:
            verdict.charged_twice += 1
            verdict.problems.append(f"{name} was charged {number} times.")
        if number == 0 and top_up.told in {Told.SUCCEEDED, Told.AUTHENTICATED}:
            verdict.not_charged += 1
            verdict.problems.append(
                f"{name} was told to have succeeded ({top_up.intent_id}), and was not charged."
            )
        if number and top_up.told is Told.DECLINED and not top_up.forgotten:
            verdict.charged_though_declined += 1
            verdict.problems.append(f"{name} was told to be declined, and was charged.")
    verdict.charged_twice += sum(taken.values())
    verdict.problems += [
        f"Org {org_id} was charged a top-up of {amount_cents} cents that nobody wanted."
        for org_id, amount_cents in taken
    ]


def _judge_balances(verdict: Verdict, connection: Connection, evidence: Evidence) -> None:
    """Every org's balance: what it was given, plus what Stripe holds of it, less what its calls cost."""
    held: Mapping[str, Any] = control(evidence.stripe_url, "holdings")
    spent: Counter[int] = Counter()
    for pushed in evidence.pushed:
        for (org_id, _), cost in pushed.calls.items():
            spent[org_id] += cost.cents
    net_cents: Counter[int] = Counter()
    for customer_id, org_id in connection.execute(_CUSTOMERS):
        net_cents[org_id] += held[customer_id]["net_cents"] if customer_id in held else 0
    for balance in read_balances(evidence.engine, list(evidence.starting_cents)):
        org_id = balance.org_id
        expected = evidence.starting_cents[org_id] + net_cents[org_id] - spent[org_id]
        if balance.balance_cents != expected:
            verdict.balances_wrong += 1
            verdict.problems.append(
                f"Org {org_id} has {balance.balance_cents} cents; by the records it should have {expected}."
            )


def _judge_gates(verdict: Verdict, evidence: Evidence) -> None:
    org_ids = list(evidence.starting_cents)
    wrong = wrong_gates(Gates(evidence.client).read(org_ids), read_balances(evidence.engine, org_ids))
    verdict.gates_wrong = len(wrong)
    verdict.problems += wrong


def _audit(verdict: Verdict, evidence: Evidence) -> None:
    report = run_audit(evidence.engine)
    verdict.audit_violations = len(report.violations)
    stripe = audit_against_stripe(evidence.engine, evidence.stripe)
    verdict.stripe_violations = len(stripe.violations)
    verdict.problems += [
        f"Audit, {each.invariant}, org {each.org_id}: {each.detail}."
        for each in (*report.violations, *stripe.violations)
    ]
    if stripe.settling:
        verdict.problems.append(f"{stripe.settling} charges are still on their way, and were not compared.")
