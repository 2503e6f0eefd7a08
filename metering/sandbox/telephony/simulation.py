"""Simulated telephony: which calls want to start, when, and what is pushed once they have ended.

Pure and seeded: the same arguments give the same calls. Which of them start is up to the gates.
"""

import heapq
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from metering.rules.rejections import Reason
from metering.sandbox.telephony.calls import Attempt, Call, Push
from metering.sandbox.telephony.malformed_events import MalformedEvent, encode, malformed_events

DUPLICATE_SHARE: Final = 0.05
BROKEN_SHARE: Final = 0.01
LATE_SHARE: Final = 0.1
LATEST_S: Final = 2.0
"""What is pushed late, or again, is so by at most this."""
TYPICAL_CHARGE_CENTS: Final = 18
"""About what a call costs on average."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OperatorCredit:
    """An operator's credit for an org that is exhausted, so long after that was said."""

    after_s: float
    amount_cents: int


class Telephony:
    """A telephony layer where calls want to start at random, independently of each other, `rate` a second on average.

    Calls want to start for `duration_s`; the last of them end some seconds later. Call ids repeat between orgs, because
    each org's calls are counted from the same number, but not between two starts. The first orgs are the busiest.
    """

    def __init__(
        self, org_ids: Sequence[int], *, start: datetime, seed: int, duration_s: float, rate: float
    ) -> None:
        if not org_ids or duration_s <= 0 or rate <= 0:
            raise ValueError("simulated telephony needs orgs, a duration and a rate above 0")
        self.org_ids = tuple(org_ids)
        self.start = start
        self.duration_s = duration_s
        self.rate = rate
        self._seed = seed
        self._weights = [1 / math.sqrt(rank + 2) for rank in range(len(self.org_ids))]
        started_s = (start - _EPOCH) // timedelta(seconds=1)
        self.missing_org_id = started_s
        """No org has this id, nor did an earlier start use it: whoever mends the cause of one run doesn't upset the next."""
        self.missing_tier = f"thunder-{started_s}"
        self._first_call_id = (start - _EPOCH) // timedelta(microseconds=1)

    def starting_balances_cents(self) -> dict[int, int]:
        """A balance for each org to begin with, in cents: about half of them are less than its calls would cost."""
        randomness = random.Random(f"balances {self._seed}")  # noqa: S311 - to be repeatable, not secret
        return {
            org_id: _whole_dollars(cents_per_s * self.duration_s * randomness.uniform(0.15, 1.6))
            for org_id, cents_per_s in self.likely_cents_per_s().items()
        }

    def operator_credits(self) -> dict[int, list[OperatorCredit]]:
        """What an operator does each next time that an org is exhausted, and nothing once the list is at its end.

        A refill is what the org spends in some seconds; every third org or so gets none.
        """
        randomness = random.Random(f"refills {self._seed}")  # noqa: S311 - to be repeatable, not secret
        return {
            org_id: [
                OperatorCredit(
                    randomness.uniform(2.0, 4.0), _whole_dollars(cents_per_s * randomness.uniform(3.0, 8.0))
                )
                for _ in range(randomness.choice((0, 1, 2)))
            ]
            for org_id, cents_per_s in self.likely_cents_per_s().items()
        }

    def likely_cents_per_s(self) -> dict[int, float]:
        """What each org's calls cost, on average and while none is refused."""
        per_weight = self.rate * TYPICAL_CHARGE_CENTS / sum(self._weights)
        return {
            org_id: per_weight * weight for org_id, weight in zip(self.org_ids, self._weights, strict=True)
        }

    def schedule(self) -> Iterator[Attempt | Push]:
        """Calls that want to start, and the events of those that end, in order of time. It doesn't wait for anybody.

        The events of a call come after its attempt, and are there whether or not it is let in.
        """
        waiting: list[tuple[float, int, Push]] = []  # by time, then in the order in which they were made
        numbers = itertools.count()
        for attempt, pushes in self._calls():
            while waiting and waiting[0][0] <= attempt.at_s:
                yield heapq.heappop(waiting)[2]
            yield attempt
            for push in pushes:
                heapq.heappush(waiting, (push.at_s, next(numbers), push))
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _calls(self) -> Iterator[tuple[Attempt, list[Push]]]:
        """When each call wants to start, and what is pushed because of it."""
        randomness = random.Random(self._seed)  # noqa: S311 - to be repeatable, not secret
        next_call_ids = dict.fromkeys(self.org_ids, self._first_call_id)
        ways = malformed_events()
        started_s = randomness.expovariate(self.rate)
        while started_s < self.duration_s:
            org_id = randomness.choices(self.org_ids, self._weights)[0]
            call = Call.draw(randomness, org_id, next_call_ids[org_id], started_s, self.start)
            next_call_ids[org_id] += 1
            late = randomness.random() < LATE_SHARE
            pushed_s = _later(call.ended_s, 0.5, randomness) if late else call.ended_s
            yield call.attempt(), self._pushes_of(call, pushed_s, ways, randomness)
            started_s += randomness.expovariate(self.rate)

    def _pushes_of(
        self,
        call: Call,
        pushed_s: float,
        ways: Iterator[Reason | MalformedEvent],
        randomness: random.Random,
    ) -> list[Push]:
        fate = randomness.random()
        if fate >= BROKEN_SHARE + DUPLICATE_SHARE:
            return [call.push(pushed_s)]
        again_s = _later(pushed_s, 1.0, randomness)
        if fate >= BROKEN_SHARE:
            return [call.push(pushed_s), call.push(again_s, call.spelled_anew(randomness), repeated=True)]
        breakage = next(ways)
        if isinstance(breakage, MalformedEvent):
            return [call.push(pushed_s, breakage.of(call.fields), reason=breakage.reason)]
        if breakage is Reason.UNKNOWN_ORG:
            return [
                call.push(pushed_s, encode(call.fields | {"org_id": self.missing_org_id}), reason=breakage)
            ]
        if breakage is Reason.UNKNOWN_TIER:
            return [call.push(pushed_s, encode(call.fields | {"tier": self.missing_tier}), reason=breakage)]
        talked = call if call.duration_ms else call.lasting(1)
        return [talked.push(pushed_s), talked.push(again_s, talked.contradicted(randomness), reason=breakage)]


def _later(at_s: float, mean_s: float, randomness: random.Random) -> float:
    return at_s + min(randomness.expovariate(1 / mean_s), LATEST_S)


def _whole_dollars(cents: float) -> int:
    """The next higher amount of whole dollars, in cents."""
    return (int(cents) // 100 + 1) * 100
