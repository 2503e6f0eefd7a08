"""Holds in Redis: what running calls may still cost (docs/reference/holds.md)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Any, Final

import redis
import redis.asyncio

from metering.runtime.lua import lua_script
from metering.runtime.names import HOLD_COUNTS, HOLDING_ORGS, HOLDS_REFUSED, hold_ends_key, holds_key

MAX_CENTS: Final = 2**53 - 1
"""The most that a hold may be of: numbers in Lua are doubles. hold_call.lua has the same."""
MAX_TTL_S: Final = 691_200
"""The longest that a hold may be for, eight days: no event tells of a call of more than seven. hold_call.lua has the same."""
HELD_AFTER_LAPSE_S: Final = 86_400
"""How long a lapsed hold still counts. held.lua has the same."""
PAGE: Final = 1_000
"""How many orgs are read at once."""
MAX_ID: Final = 2**63 - 1
MAX_DIGITS: Final = 19
"""How many MAX_ID has."""

_ASK: Final = lua_script(__package__, "ask_hold.lua")
_READ: Final = lua_script(__package__, "read_holds.lua")
_TOTALS: Final = lua_script(__package__, "held_totals.lua")
_DISMISS: Final = lua_script(__package__, "dismiss_hold.lua")
_SWEEP: Final = lua_script(__package__, "sweep_holds.lua")
_FORGET_REFUSED: Final = lua_script(__package__, "forget_refused.lua")


class HoldOutcome(StrEnum):
    """What came of asking for a hold."""

    GRANTED = "granted"
    INSUFFICIENT = "insufficient"
    """The gate is open, but what is available doesn't cover it."""
    EXHAUSTED = "exhausted"
    SUSPENDED = "suspended"
    TOO_MANY_CALLS = "too_many_calls"
    ENDED = "ended"
    """The call's event was seen in the last 24 hours; or it was cancelled by this."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held for one call. Times are Redis's clock, in milliseconds."""

    org_id: int
    call_id: int
    cents: int
    since_ms: int
    """When it was first held."""
    available_cents: int
    """What was available after that."""
    ends_ms: int
    """When it lapses unless it is renewed, or has lapsed."""
    terms: str
    """What whoever took it has told of it; empty for one that telephony took by itself."""

    def lapsed(self, now_ms: int) -> bool:
        """Whether its time is over. It still counts until the call's event comes, a day has passed, or it is dismissed."""
        return self.ends_ms <= now_ms


@dataclass(frozen=True, slots=True)
class HoldAnswer:
    """What came of it, and the org as it is after that."""

    outcome: HoldOutcome
    available_cents: int
    """The gate's balance minus what is held."""
    held_cents: int
    """By all calls, lapsed holds too."""
    running_calls: int
    hold: Hold | None
    """The call's own; a renewal that was refused leaves it as it was. None: nothing is held for the call."""
    is_new: bool
    """Whether this made the hold. One that was there already is granted again as it is."""
    now_ms: int
    """Redis's clock."""


@dataclass(frozen=True, slots=True)
class HeldTotals:
    """What an org's calls hold together."""

    org_id: int
    held_cents: int
    running_calls: int
    lapsed_calls: int


@dataclass(frozen=True, slots=True)
class HeldCalls:
    """An org's holds at one time of Redis's clock, the soonest end first: so lapsed ones come first."""

    now_ms: int
    holds: list[Hold]


@dataclass(frozen=True, slots=True)
class SweptOrg:
    """What a look at an org's holds has seen."""

    totals: HeldTotals
    newly_lapsed: int
    """How many holds have lapsed since the last look."""
    lapsed_call_ids: list[int]
    """Some of their calls."""


@dataclass(frozen=True, slots=True)
class RefusedHold:
    """The first that was refused an org for want of money since such notes were last taken."""

    org_id: int
    call_id: int
    cents: int
    """What was asked for."""
    at_ms: int


class Holds:
    """The holds of all orgs. Every method may raise redis.RedisError; ResponseError for what no hold can be."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._ask = client.register_script(_ASK)
        self._read = client.register_script(_READ)
        self._totals = client.register_script(_TOTALS)
        self._dismiss = client.register_script(_DISMISS)
        self._sweep = client.register_script(_SWEEP)
        self._forget_refused = client.register_script(_FORGET_REFUSED)

    def start(self, org_id: int, call_id: int, cents: int, ttl_s: int, terms: str = "") -> HoldAnswer:
        """Hold `cents` for a call that wants to start, for `ttl_s` seconds. One that is held already stays as it is."""
        return _answer(org_id, call_id, self._ask(_keys(org_id), ["start", call_id, cents, ttl_s, terms]))

    def renew(self, org_id: int, call_id: int, cents: int, ttl_s: int, terms: str = "") -> HoldAnswer:
        """Hold `cents` in all for a call that runs, for `ttl_s` seconds from now; refused, its hold stays as it is.

        A hold that isn't known is made anew.
        """
        return _answer(org_id, call_id, self._ask(_keys(org_id), ["renew", call_id, cents, ttl_s, terms]))

    def cancel(self, org_id: int, call_id: int) -> HoldAnswer:
        """Hold nothing more for a call that will never have an event; `ended`, whether something was held or not."""
        return _answer(org_id, call_id, self._ask(_keys(org_id), ["cancel", call_id]))

    def dismiss(self, org_id: int, call_id: int) -> Hold | None:
        """Take away a lapsed hold; gives it. None: there is no such hold that is lapsed."""
        answer: Any = self._dismiss(_keys(org_id), [call_id])
        return _hold(org_id, call_id, answer[1], answer[0]) if answer else None

    def find(self, org_id: int, call_id: int) -> Hold | None:
        """The hold of one call."""
        return next(iter(_calls(org_id, self._read(_keys(org_id), [call_id])).holds), None)

    def calls(self, org_id: int) -> HeldCalls:
        """All holds of an org."""
        return _calls(org_id, self._read(_keys(org_id)))

    def totals(self, org_ids: Sequence[int]) -> list[HeldTotals]:
        """What is held for each of `org_ids`, in their order."""
        return _all_totals(org_ids, self._totals([holds_key(org_id) for org_id in org_ids]))

    def sweep(self, org_ids: Sequence[int]) -> list[SweptOrg]:
        """Forget what has been lapsed for a day, and see what has lapsed since the last look.

        Orgs that have no holds are left out.
        """
        answers: Any = self._sweep([HOLDING_ORGS], list(org_ids))
        return [
            SweptOrg(
                HeldTotals(org_id, int(answer[0]), answer[1], answer[2]),
                answer[3],
                _ids(answer[4]),
            )
            for org_id, answer in zip(org_ids, answers, strict=True)
            if answer
        ]

    def counts(self) -> dict[str, int]:
        """What became of holds since Redis was last emptied: `started`, `lapsed`, and the outcomes by which they were refused."""
        found: Any = self._client.hgetall(HOLD_COUNTS)
        return {name.decode(): int(count) for name, count in found.items() if count.isdigit()}

    def org_ids(self) -> Iterator[list[int]]:
        """Pages of the orgs that have holds, or had some lately; one may come twice."""
        cursor = 0
        while True:
            found: Any = self._client.sscan(HOLDING_ORGS, cursor, count=PAGE)
            cursor, members = found
            yield _ids(members)
            if cursor == 0:
                return

    def lapsed_call_ids(self, org_id: int, page: int) -> Iterator[list[int]]:
        """Pages of an org's lapsed calls, the longest lapsed first; where some end meanwhile, others may be left out."""
        seconds, microseconds = self._client.time()
        now_ms = seconds * 1_000 + microseconds // 1_000
        for offset in count(0, page):
            found: Any = self._client.zrange(
                hold_ends_key(org_id), "-inf", now_ms, byscore=True, offset=offset, num=page
            )
            yield _ids(found)
            if len(found) < page:
                return

    def refused(self, limit: int = PAGE) -> list[RefusedHold]:
        """About `limit` refusals that were left for the jobs, one for an org at the most.

        What is none is taken away: it would stand before the others for ever.
        """
        scanned: Any = self._client.hscan(HOLDS_REFUSED, 0, count=limit)
        found = {item: _refused(*item) for item in scanned[1].items()}
        if junk := [word for item, refusal in found.items() if refusal is None for word in item]:
            self._forget_refused([HOLDS_REFUSED], junk)
        return [refusal for refusal in found.values() if refusal is not None]

    def forget_refused(self, refused: Sequence[RefusedHold]) -> None:
        """Take them away, once what is due because of them is written: the next one is left again."""
        notes = [(each.org_id, f"{each.at_ms} {each.call_id} {each.cents}") for each in refused]
        if notes:
            self._forget_refused([HOLDS_REFUSED], [word for note in notes for word in note])


class HoldsAsync:
    """The same in an event loop."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._ask = client.register_script(_ASK)
        self._read = client.register_script(_READ)
        self._totals = client.register_script(_TOTALS)

    async def start(self, org_id: int, call_id: int, cents: int, ttl_s: int, terms: str = "") -> HoldAnswer:
        """As Holds.start."""
        answer = await self._ask(_keys(org_id), ["start", call_id, cents, ttl_s, terms])
        return _answer(org_id, call_id, answer)

    async def extend(self, org_id: int, call_id: int, cents: int, ttl_s: int, terms: str = "") -> HoldAnswer:
        """As Holds.renew, but one that asks for less than is held leaves that, and its terms; and no hold ends sooner by it."""
        answer = await self._ask(_keys(org_id), ["extend", call_id, cents, ttl_s, terms])
        return _answer(org_id, call_id, answer)

    async def cancel(self, org_id: int, call_id: int) -> HoldAnswer:
        """As Holds.cancel."""
        return _answer(org_id, call_id, await self._ask(_keys(org_id), ["cancel", call_id]))

    async def find(self, org_id: int, call_id: int) -> Hold | None:
        """As Holds.find."""
        return next(iter(_calls(org_id, await self._read(_keys(org_id), [call_id])).holds), None)

    async def calls(self, org_id: int) -> HeldCalls:
        """As Holds.calls."""
        return _calls(org_id, await self._read(_keys(org_id)))

    async def totals(self, org_ids: Sequence[int]) -> list[HeldTotals]:
        """As Holds.totals."""
        return _all_totals(org_ids, await self._totals([holds_key(org_id) for org_id in org_ids]))


def _keys(org_id: int) -> list[str]:
    return [holds_key(org_id), hold_ends_key(org_id)]


def _answer(org_id: int, call_id: int, answer: Any) -> HoldAnswer:
    outcome, available_cents, held_cents, running, is_new, now_ms, record, ends_ms = answer
    hold = None if record is None or ends_ms is None else _hold(org_id, call_id, ends_ms, record)
    return HoldAnswer(
        HoldOutcome(outcome.decode()), available_cents, held_cents, running, hold, bool(is_new), now_ms
    )


def _calls(org_id: int, answer: Any) -> HeldCalls:
    now_ms, found = int(answer[0]), answer[1:]
    return HeldCalls(
        now_ms,
        [
            _hold(org_id, int(call_id), ends_ms, record)
            for call_id, ends_ms, record in zip(found[::3], found[1::3], found[2::3], strict=True)
            if _is_id(call_id)
        ],
    )


def _hold(org_id: int, call_id: int, ends_ms: bytes, record: bytes) -> Hold:
    cents, _, rest = record.partition(b" ")
    since_ms, _, rest = rest.partition(b" ")
    available_cents, _, terms = rest.partition(b" ")
    return Hold(
        org_id,
        call_id,
        _number(cents),
        _number(since_ms),
        -_number(available_cents[1:]) if available_cents.startswith(b"-") else _number(available_cents),
        int(ends_ms),
        terms.decode(errors="replace"),
    )


def _all_totals(org_ids: Sequence[int], answer: Any) -> list[HeldTotals]:
    return [
        HeldTotals(org_id, int(cents), running, lapsed)
        for org_id, cents, running, lapsed in zip(
            org_ids, answer[::3], answer[1::3], answer[2::3], strict=True
        )
    ]


def _refused(org_id: bytes, note: bytes) -> RefusedHold | None:
    """A refusal; None where somebody else wrote something there."""
    words = note.split(b" ")
    if len(words) != 3 or not all(map(_is_id, (org_id, *words[:2]))) or not _is_number(words[2]):  # noqa: PLR2004 - as hold_call.lua writes it
        return None
    at_ms, call_id, cents = map(int, words)
    return RefusedHold(int(org_id), call_id, cents, at_ms)


def _number(text: bytes) -> int:
    """0 where somebody else wrote something there, as in held.lua."""
    return int(text) if _is_number(text) else 0


def _is_number(text: bytes) -> bool:
    """Not so long that Python itself refuses to read it."""
    return text.isdigit() and len(text) <= MAX_DIGITS


def _is_id(text: bytes) -> bool:
    """Postgres can't be asked for what is none."""
    return _is_number(text) and 0 < int(text) <= MAX_ID


def _ids(texts: Iterable[bytes]) -> list[int]:
    """Ids, without what somebody else wrote there."""
    return [int(text) for text in texts if _is_id(text)]
