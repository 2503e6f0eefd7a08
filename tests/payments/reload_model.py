"""What may be charged: a model of docs/reference/auto-reload.md that looks at Stripe, at the rows, and at nothing of the
code's."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from metering.rules.reloads import HARD_DECLINES
from metering.sandbox.stripe.values import Json
from tests.payments.reload_world import ReloadWorld

LOST = ("refunded", "disputed")
MOST_TRIES = 3
DECLINES_UNMADE = ("insufficient_funds",)
"""The code of a decline for which there is no PaymentIntent: that of the stand-in's fault."""

_ATTEMPTS = """
    SELECT id::text, status, amount_cents, created_at, failure_code, payment_intent_id, payment_method_id, first_sent_at
    FROM payment_attempts WHERE kind = 'auto_reload' ORDER BY created_at, id
"""
_STATE = """
    SELECT pause_code, pause_lifts_with, paused_at, paused_until,
        cardinality(ARRAY(SELECT each FROM unnest(lifts) AS each WHERE each > %s)) AS lifts
    FROM reload_states WHERE org_id = 1
"""
_ACCOUNT = """
    SELECT balance_cents, auto_reload_enabled, auto_reload_minimum_cents, auto_reload_amount_cents,
        auto_reload_monthly_limit_cents,
        CASE WHEN default_payment_method_id IS NOT NULL THEN split_part(default_card_identity, ' ', 1) END AS card
    FROM accounts WHERE org_id = 1
"""
PACE = timedelta(minutes=10)
DAY = timedelta(hours=24)
MARGIN = timedelta(seconds=5)
_MONEY = """
    SELECT id, kind, amount_cents, balance_after_cents, source_key FROM transactions WHERE id > %s ORDER BY id
"""


@dataclass(slots=True)
class Made:
    """An attempt, with what was in force when it was first seen."""

    limit: int | None
    below: int
    """It may only be made below this balance."""
    number: int
    since_change: int


@dataclass
class Model:
    """Looks at everything after each step, and raises AssertionError for what must not be."""

    world: ReloadWorld
    made: dict[str, Made] = field(default_factory=dict)
    limit: int | None = None
    below: int = 1
    changes: int = 0
    settings: tuple[Any, ...] = ()
    card: str | None = None
    last_card: str | None = None
    """The default card, or where there is none the last one there was."""
    dead_card: str | None = None
    """A card that was declined for good, while it is the last default one."""
    lost_at: int | None = None
    """After how many changes money went back to a card, until there is another change."""
    lost_until: datetime | None = None
    """When that is over: of a refund after a day, of a dispute never."""
    state: Any = None
    """The org's pause as it was seen last."""
    settings_lifts: list[datetime] = field(default_factory=list)
    """When a change of settings has ended a pause."""
    resumptions: int = 0
    refused_at: int | None = None
    """After how many changes the last change was that ended none, because there were too many."""
    sent_intents: set[str] = field(default_factory=set)
    last_transaction: int = 0
    lowest_since_credit: int | None = None
    failed: dict[str, int] = field(default_factory=dict)
    """Attempts that have failed, and after how many changes that was known: the pause begins then, not when they were made."""

    marks: dict[str, str] = field(default_factory=dict)
    """Of which reload each PaymentIntent is, as its metadata were when it was first seen: anybody may edit them later."""
    forgotten: set[str] = field(default_factory=set)
    """Reloads that a restore has undone, as far as they were made or sent since the backup."""

    def copied(self) -> "Model":
        """As it is now, to go on from after a restore."""
        return deepcopy(self, {id(self.world): self.world})

    def restored(self) -> None:
        """Postgres is as it was when this was copied, and Stripe is not: whatever it has since then was sent before."""
        intents = self._intents()
        sent = {each for each, there in intents.items() if there}
        self.forgotten |= sent - self.sent_intents
        self.sent_intents |= sent

    def look(self, *, customer_acts: bool = False, hand_acts: bool = False) -> None:
        """Look at everything. The step changed settings or cards (`customer_acts`), or a worker acted that is held at times."""
        account = self.world.glance(_ACCOUNT)[0]
        attempts = self.world.glance(_ATTEMPTS)
        intents = self._intents()
        lost_before, dead_before = self._lost(), self.dead_card
        card_before, changes_before = self.last_card, self.changes
        self._note_settings(account)
        self._note_lifts(same_card=self.last_card == card_before, changed=self.changes != changes_before)
        self._note_resumptions()
        fresh = [each for each in attempts if each.id not in self.made]
        # What comes back after a restore was made when nobody knew what is known now, nor what others knew of it.
        fresh.sort(key=lambda each: each.id in self.forgotten)
        for each in fresh:
            limit = None if each.id in self.forgotten else self.limit
            self.made[each.id] = Made(limit, self.below, len(self.made), self.changes)
        fresh = [each for each in fresh if each.id not in self.forgotten]
        self._note_money(attempts)
        self._note_declines(attempts)
        self._check_one_open(attempts)
        self._check_ended_at_stripe(attempts, intents)
        self._check_cap(attempts, intents)
        self._check_pauses(fresh, lost_before, dead_before)
        self._check_tries(attempts, intents)
        self._check_pace(attempts)
        self._check_wanted(account, attempts, intents, by_hand=hand_acts or customer_acts)

    def _intents(self) -> dict[str, list[Json]]:
        """Stripe's PaymentIntents of reloads, by attempt."""
        with self.world.sandbox._store.work() as work:
            found = list(work.newest("payment_intent"))
        by_attempt = defaultdict(list)
        for each in found:
            if each["id"] not in self.marks:
                metadata = each["metadata"]
                reload = metadata.get("attempt_kind") == "auto_reload"
                self.marks[each["id"]] = metadata["attempt_id"] if reload else ""
            mark = self.marks[each["id"]]
            if mark:
                by_attempt[mark].append(each)
        return by_attempt

    def _note_settings(self, account: Any) -> None:
        settings = tuple(account)[1:5]
        self.limit = account.auto_reload_monthly_limit_cents
        self.below = max(account.auto_reload_minimum_cents or 0, 1)
        another_card = account.card is not None and account.card != self.last_card
        # Unset reads 0, so setting to 0 what was unset is no change.
        if tuple(each or 0 for each in settings[:3]) + settings[3:] != self.settings or another_card:
            self.changes += 1
            self.lost_at = None
        if another_card:
            self.dead_card = None
            self.last_card = account.card
        self.card = account.card
        self.settings = tuple(each or 0 for each in settings[:3]) + settings[3:]

    def _note_money(self, attempts: list[Any]) -> None:
        """A reload's credit follows a balance below the minimum, since the one before it."""
        by_intent = {each.payment_intent_id: each for each in attempts if each.payment_intent_id}
        for row in self.world.glance(_MONEY, self.last_transaction):
            self.last_transaction = row.id
            attempt = by_intent.get(row.source_key) if row.kind == "credit" else None
            if attempt is not None and attempt.id not in self.forgotten:
                below = self.made[attempt.id].below
                lowest = self.lowest_since_credit
                assert lowest is not None, f"a second charge for one crossing: {attempt}"
                assert lowest < below, f"a charge without a crossing ({lowest} < {below}): {attempt}"
                self.lowest_since_credit = row.balance_after_cents
                self.changes += 1  # a success resets the count as a change does
            elif self.lowest_since_credit is None:
                self.lowest_since_credit = row.balance_after_cents
            else:
                self.lowest_since_credit = min(self.lowest_since_credit, row.balance_after_cents)
            if row.kind == "refund" and self.settings[0]:
                forever = self._lost() is not None and self.lost_until is None
                self.lost_at = self.changes
                refund = row.source_key.startswith("re_")
                self.lost_until = self.world.clock.at + DAY if refund and not forever else None
        if self.lowest_since_credit is None:
            self.lowest_since_credit = 0

    def _lost(self) -> int | None:
        """After how many changes money went back to a card for which reloads rest now."""
        over = self.lost_until is not None and self.world.clock.at >= self.lost_until
        return None if over else self.lost_at

    def _note_lifts(self, *, same_card: bool, changed: bool) -> None:
        """Settings end a pause three times in any day, and are refused to only then."""
        now = self.world.clock.at
        found = self.world.glance(_STATE, now - DAY)
        before, self.state = self.state, found[0] if found else None
        if before is None or before.pause_code is None or not changed:
            return
        if self.state.pause_code is not None:
            if self.state.lifts >= MOST_TRIES:
                self.refused_at = self.changes
            elif same_card and self.card is not None:
                assert before.pause_lifts_with == "card", f"a change of settings has lifted nothing: {before}"
        elif same_card and self.card is not None:
            assert before.pause_lifts_with != "card", f"lifted by a setting: {before}"
            self.settings_lifts.append(now)
            lately = [each for each in self.settings_lifts if each > now - DAY]
            assert len(lately) <= MOST_TRIES, f"settings have lifted a pause too often: {lately}"

    def _note_resumptions(self) -> None:
        """What an operator has lifted begins anew."""
        (found,) = self.world.glance("SELECT count(*) AS number FROM reload_resumptions")
        if found.number != self.resumptions:
            self.resumptions = found.number
            self.changes += 1
            self.lost_at = self.dead_card = None
            self.settings_lifts.clear()

    def _check_pace(self, attempts: list[Any]) -> None:
        """No ten minutes have more than five first sends."""
        ours = [each for each in attempts if each.id not in self.forgotten]
        sent = sorted(each.first_sent_at for each in ours if each.first_sent_at is not None)
        assert all(later - first >= PACE for first, later in zip(sent, sent[5:], strict=False)), sent

    def _note_declines(self, attempts: list[Any]) -> None:
        for each in attempts:
            if each.status == "failed" and each.id not in self.failed:
                self.failed[each.id] = self.changes
                if each.failure_code in HARD_DECLINES and self._card_of(each) == self.last_card:
                    self.dead_card = self.last_card

    def _card_of(self, attempt: Any) -> str:
        method = self.world.sandbox._store.peek(attempt.payment_method_id)
        assert method is not None
        return str(method["card"]["fingerprint"])

    def _check_one_open(self, attempts: list[Any]) -> None:
        assert sum(each.status == "open" for each in attempts) <= 1

    def _check_ended_at_stripe(self, attempts: list[Any], intents: dict[str, list[Json]]) -> None:
        """What has ended here has ended there, for good: or its part of the month would have been free too early."""
        assert intents.keys() <= self.made.keys() | self.forgotten
        for each in attempts:
            if each.id in self.forgotten:
                continue  # it comes to know what was done, sooner or later
            there = intents.get(each.id, [])
            assert len(there) <= 1, f"charged twice: {each}"
            statuses = {intent["status"] for intent in there}
            if each.status == "succeeded":
                assert statuses == {"succeeded"}, (each, statuses)
            elif each.status != "open":
                assert statuses <= {"canceled"}, (each, statuses)

    def _check_cap(self, attempts: list[Any], intents: dict[str, list[Json]]) -> None:
        """What Stripe dates in a month, and what is out since then, was within the limit when the last of them was made."""
        committed: dict[tuple[int, int], int] = defaultdict(int)
        for each in sorted(attempts, key=lambda row: self.made[row.id].number):
            taken = any(intent["status"] == "succeeded" for intent in intents.get(each.id, []))
            if taken or each.status == "open":
                month = _month_of(each, intents)
                committed[month] += each.amount_cents
                limit = self.made[each.id].limit
                assert limit is None or committed[month] <= limit, f"above the limit of {limit}: {each}"

    def _check_pauses(self, fresh: list[Any], lost_before: int | None, dead_before: str | None) -> None:
        if fresh and lost_before is not None and lost_before == self.lost_at:
            raise AssertionError(f"charged though the money went back: {fresh}")
        if fresh and dead_before is not None and dead_before == self.dead_card:
            raise AssertionError(f"charged though the card is dead: {fresh}")

    def _check_tries(self, attempts: list[Any], intents: dict[str, list[Json]]) -> None:
        """A card that fails is tried three times, until something changes."""
        tries: dict[int, int] = defaultdict(int)
        for each in attempts:
            there = intents.get(each.id, [])
            unmade = not there and each.failure_code in DECLINES_UNMADE
            if each.id not in self.forgotten and (
                unmade or any(intent["last_payment_error"] for intent in there)
            ):
                tries[self.made[each.id].since_change] += 1
        assert all(number <= MOST_TRIES for number in tries.values()), tries

    def _check_wanted(
        self, account: Any, attempts: list[Any], intents: dict[str, list[Json]], *, by_hand: bool
    ) -> None:
        """What is sent at last is still wanted then: nobody has disabled it, or lowered the limit, or taken his money back.

        A worker that was held just before it sent may not have known.
        """
        for each in attempts:
            if each.id in intents and each.id not in self.sent_intents:
                self.sent_intents.add(each.id)
                if by_hand:
                    continue
                assert account.auto_reload_enabled, f"charged though disabled: {each}"
                limit = account.auto_reload_monthly_limit_cents
                month = [
                    other.amount_cents
                    for other in attempts
                    if _month_of(other, intents) == _month_of(each, intents)
                    and self.made[other.id].number <= self.made[each.id].number
                    and (other.status in {"open", "succeeded"})
                ]
                declined = not any(intent["status"] == "succeeded" for intent in intents[each.id])
                assert declined or limit is None or sum(month) <= limit, f"charged above {limit}: {each}"

    def due_now(self) -> bool:
        """Whether the org should be charged now, as far as balance, settings, card and month tell: pauses aside."""
        account = self.world.glance(_ACCOUNT)[0]
        attempts = self.world.glance(_ATTEMPTS)
        intents = self._intents()
        now = max([self.world.clock.at, *(each.created_at for each in attempts)])
        if sum(each.first_sent_at is not None and each.first_sent_at > now - PACE for each in attempts) >= 5:
            return False  # it waits for its pace
        committed = sum(
            each.amount_cents
            for each in attempts
            if each.status in {"open", "succeeded"}
            and _month_of(each, intents) in {_month(now), _month(now - MARGIN)}
        )
        limit = account.auto_reload_monthly_limit_cents
        return bool(
            account.auto_reload_enabled
            and account.card is not None
            and account.balance_cents < max(account.auto_reload_minimum_cents, 1)
            and (limit is None or committed + account.auto_reload_amount_cents <= limit)
        )

    def paused_for_a_reason(self) -> bool:
        """Whether anything has happened since the last change for which reloads may rest."""
        because = (self.dead_card, self._lost())
        return any(each is not None for each in because) or self.changes in {
            *self.failed.values(),
            self.refused_at,
        }


def _month(at: datetime) -> tuple[int, int]:
    return at.year, at.month


def _month_of(attempt: Any, intents: dict[str, list[Json]]) -> tuple[int, int]:
    """The month of Stripe's charge; where there is none, that in which it was first sent, or would be."""
    for each in intents.get(attempt.id, []):
        return _month(datetime.fromtimestamp(each["created"], UTC))
    return _month(attempt.first_sent_at or attempt.created_at)
