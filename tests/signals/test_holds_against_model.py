"""Holds against ten lines of Python: starts, renewals, cancels, events late, doubled and rejected, gates, time, crashes."""

from collections import Counter
from typing import ClassVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from metering.rules.gates import Balance
from metering.runtime.clock import system_clock
from metering.runtime.names import HOLDING_ORGS, ended_calls_key, gate_key, hold_ends_key, holds_key
from metering.signals.gates import Gates
from metering.signals.holds import Holds
from tests.signals.holding import (
    CLOCK,
    DAY_MS,
    START_MS,
    OrgModel,
    Seen,
    Telephony,
    holds_on_test_clock,
    load_on_test_clock,
    put_on_test_clock,
)

ORG = st.integers(1, 2)
CALL = st.integers(1, 5)
CENTS = st.integers(0, 60)
TTL_S = st.sampled_from([1, 60, 3_600, 691_200])
WORDS = {b"cents", b"last_ms", b"looked_ms", b"ended_until_ms"}


class HoldsMachine(RuleBasedStateMachine):
    """`balance` and `version` of an org are Postgres's; the gate may be behind: what a crash kept from it comes later."""

    client: ClassVar[redis.Redis]
    tally: ClassVar[Counter[str]] = Counter()

    @initialize()
    def begin(self) -> None:
        self.client.flushall()
        load_on_test_clock(self.client)
        self.now = START_MS
        self.telephony = Telephony(self.client)
        self.holds: Holds = holds_on_test_clock(self.client)
        self.meters = [Gates(self.client), Gates(self.client)]
        for each in self.meters:
            put_on_test_clock(each)
        self.orgs = {org: OrgModel() for org in (1, 2)}
        self.version = dict.fromkeys(self.orgs, 0)
        self.balance = dict.fromkeys(self.orgs, 0)
        self.suspended = dict.fromkeys(self.orgs, False)
        self.most: dict[int, int | None] = dict.fromkeys(self.orgs)
        self.gate_version = dict.fromkeys(self.orgs, -1)
        self.debited: dict[int, set[int]] = {org: set() for org in self.orgs}
        for org in self.orgs:
            self.credit(org, 100)

    # Telephony, and the product's own API.

    @rule(
        org=ORG,
        call=CALL,
        cents=CENTS,
        ttl_s=TTL_S,
        by_api=st.booleans(),
        what=st.sampled_from(["start", "renew"]),
    )
    def ask(self, org: int, call: int, cents: int, ttl_s: int, by_api: bool, what: str) -> None:
        model = self.orgs[org]
        expected = model.ask(what, call, cents, ttl_s, self.now)
        self.tally[f"{what} {expected}"] += 1
        if by_api:
            do = self.holds.start if what == "start" else self.holds.renew
            told = do(org, call, cents, ttl_s, "terms")
            answer = [told.outcome.value, told.available_cents, told.held_cents, told.running_calls]
            held = None if told.hold is None else (told.hold.cents, told.hold.ends_ms)
            assert held == model.held.get(call)
        else:
            answer = self.telephony.call(f"call_{what}", org, call, cents, ttl_s)
        assert answer == model.answer(expected, self.now)

    @rule(org=ORG, call=CALL)
    def cancel(self, org: int, call: int) -> None:
        self.orgs[org].held.pop(call, None)
        assert self.telephony.call("call_cancel", org, call) == self.orgs[org].answer("ended", self.now)

    @rule(org=ORG, call=CALL)
    def dismiss(self, org: int, call: int) -> None:
        held = self.orgs[org].held
        lapsed = call in held and held[call][1] <= self.now
        self.tally["dismissed"] += lapsed
        assert (self.holds.dismiss(org, call) is not None) == lapsed
        if lapsed:
            del held[call]

    # What is committed in Postgres; then Redis follows, unless the process is killed before.

    @rule(org=ORG, cents=st.integers(-50, 200), lives=st.booleans())
    def credit(self, org: int, cents: int, lives: bool = True) -> None:
        self._commit(org, self.balance[org] + cents)
        if lives:
            self._follow({org: self._now(org)}, Seen(), 0)

    @rule(org=ORG, suspended=st.booleans(), most=st.sampled_from([None, 1, 2]))
    def set_org(self, org: int, suspended: bool, most: int | None) -> None:
        self.suspended[org], self.most[org] = suspended, most
        self._commit(org, self.balance[org])
        self._follow({org: self._now(org)}, Seen(), 0)

    @rule(
        org=ORG,
        calls=st.lists(CALL, min_size=1, max_size=3),
        cents=CENTS,
        meter=st.integers(0, 1),
        lives=st.booleans(),
    )
    def events(self, org: int, calls: list[int], cents: int, meter: int, lives: bool) -> None:
        """Billed the first time, a duplicate from then on; a meter that dies in between leaves its entries to come again."""
        new = set(calls) - self.debited[org]
        self.debited[org] |= new
        if new:
            self._commit(org, self.balance[org] - cents)
        self.tally["crashes"] += not lives
        if lives:
            self.tally["duplicates"] += not new
            self._follow({org: self._now(org)}, Seen({org: calls}), meter)

    @rule(org=ORG, call=CALL, meter=st.integers(0, 1))
    def event_of_0_seconds(self, org: int, call: int, meter: int) -> None:
        self._follow({}, Seen({org: [call]}), meter)

    @rule(org=ORG, call=CALL, other=ORG, meter=st.integers(0, 1))
    def rejected_event(self, org: int, call: int, other: int, meter: int) -> None:
        self._follow({other: self._now(other)}, Seen({}, {org: [call]}), meter)

    @rule(org=ORG, call=CALL, behind=st.integers(1, 3), meter=st.integers(0, 1))
    def a_slow_meter_comes_late(self, org: int, call: int, behind: int, meter: int) -> None:
        """With an older balance: the gate stays, and the hold ends all the same."""
        old = Balance(org, 10**6, max(self.gate_version[org] - behind, 0))
        self._follow({org: old}, Seen({org: [call]}), meter)

    @rule(
        seconds=st.sampled_from([0, 1, 59, 3_600, 86_399, 86_400, 700_000]),
        sweeps=st.booleans(),
    )
    def time_passes(self, seconds: int, sweeps: bool) -> None:
        self.now += seconds * 1_000
        self.client.set(CLOCK, self.now)
        if sweeps:
            self.sweep()

    def sweep(self) -> None:
        listed = [org for page in self.holds.org_ids() for org in page]
        for each in self.holds.sweep(listed):
            model = self.orgs[each.totals.org_id]
            model.answer("", self.now)
            assert each.totals.held_cents == model.balance - model.available()
            assert each.totals.running_calls == model.running(self.now)
            assert each.totals.lapsed_calls == len(model.held) - model.running(self.now)

    @rule(nothing=st.integers(0, 9))
    def redis_loses_everything(self, nothing: int) -> None:
        if nothing != 7:  # seldom: hypothesis likes 0
            return
        self.tally["FLUSHALL"] += 1
        self.client.flushall()
        load_on_test_clock(self.client)
        self.client.set(CLOCK, self.now)
        self.gate_version = dict.fromkeys(self.orgs, -1)
        self.orgs = {org: OrgModel() for org in self.orgs}

    def _commit(self, org: int, balance: int) -> None:
        self.balance[org] = balance
        self.version[org] += 1

    def _now(self, org: int) -> Balance:
        return Balance(org, self.balance[org], self.version[org], self.suspended[org], self.most[org])

    def _follow(self, balances: dict[int, Balance], seen: Seen, meter: int) -> None:
        self.meters[meter].follow(balances.values(), system_clock(), seen)
        for org, balance in balances.items():
            model = self.orgs[org]
            if balance.version > self.gate_version[org]:
                self.gate_version[org] = balance.version
                model.state, model.balance = balance.gate_state.value, balance.balance_cents
                model.most = balance.max_concurrent_calls
        for org, calls in seen.billed.items():
            self.orgs[org].end(calls, self.now)
        for org, calls in seen.rejected.items():
            self.orgs[org].lapse(calls, self.now)

    @invariant()
    def redis_holds_what_the_model_does(self) -> None:
        with self.client.pipeline(transaction=False) as pipeline:
            for org in self.orgs:
                pipeline.hgetall(holds_key(org))
                pipeline.zrange(hold_ends_key(org), 0, -1, withscores=True)
                pipeline.hget(gate_key(org), "balance_cents")
                pipeline.sismember(HOLDING_ORGS, str(org))
                for key in (holds_key(org), hold_ends_key(org), ended_calls_key(org)):
                    pipeline.ttl(key)
            told = iter(pipeline.execute())
        for model in self.orgs.values():
            stored, scores, gate, listed = (next(told) for _ in range(4))
            records = {
                int(call): int(value.split()[0]) for call, value in stored.items() if call not in WORDS
            }
            ends = {int(call): int(end) for call, end in scores}
            assert int(stored.get(b"cents", 0)) == sum(records.values()) >= 0
            assert records.keys() == ends.keys()
            counted = {
                call: (cents, ends[call]) for call, cents in records.items() if ends[call] > self.now - DAY_MS
            }
            assert counted == {call: held for call, held in model.held.items() if held[1] > self.now - DAY_MS}
            assert (model.last_ms is None) == (not stored)
            assert listed or not stored
            assert -1 not in [next(told) for _ in range(3)]  # each expires by itself
            assert (None if gate is None else int(gate)) == (model.balance if model.state else None)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("examples", [pytest.param(25), pytest.param(400, marks=pytest.mark.long)])
def test_holds_agree_with_the_model(redis_client: redis.Redis, examples: int) -> None:
    HoldsMachine.client = redis_client
    HoldsMachine.tally = Counter()
    run_state_machine_as_test(
        HoldsMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=50, suppress_health_check=list(HealthCheck)
        ),
    )
    tally = HoldsMachine.tally
    assert tally["start granted"]
    if examples > 100:
        for seen in (
            "start insufficient",
            "start exhausted",
            "start suspended",
            "start ended",
            "renew granted",
        ):
            assert tally[seen], tally
        for seen in ("renew insufficient", "renew ended", "crashes", "duplicates", "dismissed", "FLUSHALL"):
            assert tally[seen], tally
    redis_client.function_flush()
