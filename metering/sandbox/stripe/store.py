"""The state: every object ever made, and what one request changes of it, all or nothing.

One request at a time works on it, under one lock: slow answers wait outside. Objects are never changed in place; a request edits
copies, which take the others' place when it is done, after they are on disk.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metering.runtime.clock import Clock
from metering.sandbox.stripe.disk import Change, Disk, KeptAnswer, StoredObject
from metering.sandbox.stripe.errors import StripeError, no_such
from metering.sandbox.stripe.settlement import Settlement
from metering.sandbox.stripe.upgrades import upgraded
from metering.sandbox.stripe.values import (
    API_VERSION,
    PRIVATE,
    Json,
    copied,
    new_id,
    previous_of,
    shown,
    unix_seconds,
)

KEY_LIFE_S: Final = 24 * 60 * 60
"""How long an idempotency key keeps its answer."""

INDEXED: Final[dict[str, tuple[str, ...]]] = {
    "customer": ("email",),
    "payment_method": ("customer",),
    "payment_intent": ("customer",),
    "setup_intent": ("customer",),
    "charge": ("payment_intent", "customer"),
    "refund": ("payment_intent", "charge"),
    "dispute": ("payment_intent", "charge"),
    "balance_transaction": ("source",),
}
"""By which fields objects of each kind are looked up."""

_IDS_OF: Final = {  # where Stripe's messages don't spell the kind as its objects do
    "payment_method": "PaymentMethod",
    "setup_intent": "setupintent",
}


class StoreClosedError(Exception):
    """The sandbox has stopped: nothing can be done on its state any more."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that events name as their cause; both None where Stripe itself, or the sandbox's control, caused them."""

    request_id: str | None = None
    idempotency_key: str | None = None


class Store:
    """The objects, in memory, and on disk where a path is given."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._objects: dict[str, StoredObject] = {}
        self._kinds: dict[str, list[str]] = {}
        self._index: dict[tuple[str, str, Any], dict[str, None]] = {}
        self._next_position = 1
        self.answers: dict[str, KeptAnswer] = {}
        """By idempotency key, the oldest first."""
        self.announced: set[str] = set()
        """The accounts whose events are to be delivered as webhooks."""
        self.on_events: Callable[[list[Json]], None] = lambda _: None
        """Called with the events of each change when it is stored. Must not wait."""
        self._closed = False
        self._disk = Disk(path) if path is not None else None
        if self._disk is not None:
            for stored in self._disk.load_objects():
                self._put(stored._replace(value=upgraded(stored.value, self.peek)))
            self.answers = {answer.key: answer for answer in self._disk.load_answers()}

    def now(self) -> int:
        """The time, in whole seconds."""
        return unix_seconds(self._clock())

    @property
    def first_account(self) -> str:
        """The account that was there first, and owns what says of no owner; empty as long as there is none."""
        return next(iter(self.ids("account")), "")

    def owner(self, object_id: str) -> str:
        """The account that an object belongs to; the first for one that there isn't."""
        return self.owner_of(self.peek(object_id) or {})

    def owner_of(self, value: Json) -> str:
        """The account that an object belongs to."""
        owner: str | None = value.get(PRIVATE, {}).get("account")
        return owner or self.first_account

    def work_on(self, object_id: str, origin: Origin = Origin()) -> AbstractContextManager["Work"]:
        """A piece of work for the account that an object belongs to."""
        return self.work(origin, self.owner(object_id))

    @contextmanager
    def work(self, origin: Origin = Origin(), account: str | None = None) -> Iterator["Work"]:
        """A piece of work on the state, alone: stored at the end; dropped if it raises, unless the error keeps it.

        It sees what is `account`'s; without one everything, and what it makes is the first account's.
        """
        with self._lock:
            if self._closed:
                raise StoreClosedError
            work = Work(self, origin, self.now(), account)
            try:
                yield work
            except StripeError as error:
                if error.keeps_changes:
                    self._store(work)
                raise
            self._store(work)

    def clear(self, *keeping: Json) -> None:
        """Forget everything but `keeping`, objects as they are to be from now on."""
        with self._lock:
            if self._disk is not None:
                self._disk.clear()
            self._objects.clear()
            self._kinds.clear()
            self._index.clear()
            self.answers.clear()
            with self.work() as work:
                for value in keeping:
                    work.add(value)

    def close(self) -> None:
        """Close the file, if there is one. Work that begins afterwards raises StoreClosedError."""
        with self._lock:
            self._closed = True
            if self._disk is not None:
                self._disk.close()

    def peek(self, object_id: str) -> Json | None:
        """An object as it is stored; not to be changed."""
        stored = self._objects.get(object_id)
        return None if stored is None else stored.value

    def ids(self, kind: str) -> list[str]:
        """All objects of a kind, oldest first; not to be changed."""
        return self._kinds.get(kind, [])

    def ids_where(self, kind: str, name: str, value: Any) -> Iterator[str]:
        """The objects of a kind whose indexed field `name` is `value`, in no order."""
        return iter(self._index.get((kind, name, value), ()))

    def position(self, object_id: str) -> int | None:
        """An object's place in the order in which objects were made."""
        stored = self._objects.get(object_id)
        return None if stored is None else stored.position

    def _store(self, work: "Work") -> None:
        objects = []
        for object_id, value in work.changed.items():
            held = self._objects.get(object_id)
            objects.append(
                StoredObject(object_id, self._next_position if held is None else held.position, value)
            )
            self._next_position += held is None
        forgotten = self._forget_keys(work.now) if work.answer is not None else []
        if not objects and work.answer is None:
            return
        if self._disk is not None:
            self._disk.write(Change(objects, work.answer, forgotten))
        for stored in objects:
            self._put(stored)
        for key in forgotten:
            del self.answers[key]
        if work.answer is not None:
            self.answers.pop(work.answer.key, None)  # the oldest stand first
            self.answers[work.answer.key] = work.answer
        if work.events:
            self.on_events(work.events)

    def _put(self, stored: StoredObject) -> None:
        kind = stored.value["object"]
        held = self._objects.get(stored.id)
        if held is None:
            self._kinds.setdefault(kind, []).append(stored.id)
            self._next_position = max(self._next_position, stored.position + 1)
        for name in INDEXED.get(kind, ()):
            if held is not None:
                self._index.get((kind, name, held.value.get(name)), {}).pop(stored.id, None)
            self._index.setdefault((kind, name, stored.value.get(name)), {})[stored.id] = None
        self._objects[stored.id] = stored

    def _forget_keys(self, now: int) -> list[str]:
        """The keys whose time is over, from the oldest on."""
        forgotten = []
        for answer in self.answers.values():
            if now - answer.created < KEY_LIFE_S:
                break
            forgotten.append(answer.key)
        return forgotten


@dataclass(slots=True)
class Work:
    """What one request sees and changes."""

    _store: Store
    origin: Origin
    now: int
    """The time of the request, in whole seconds."""
    account: str | None = None
    """The account that it is done for; None for Stripe itself, that sees all of them."""
    changed: dict[str, Json] = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    answer: KeptAnswer | None = None

    @property
    def settlement(self) -> Settlement:
        """What the account settles in."""
        account = self.get(self.account or self.first_account, "account")
        return Settlement() if account is None else Settlement.of(account[PRIVATE]["settlement"])

    @property
    def first_account(self) -> str:
        """The account that was there first."""
        return self._store.first_account

    def get(self, object_id: str, kind: str) -> Json | None:
        """An object, not to be changed; None where there is none of that kind."""
        value = self.changed.get(object_id)
        if value is None:
            value = self._store.peek(object_id)
        return value if value is not None and value["object"] == kind and self._sees(value) else None

    def find(self, object_id: str, kind: str, param: str, *, in_path: bool = False) -> Json:
        """As `get`, but raises StripeError `resource_missing`, naming `param`. A deleted object is missing."""
        value = self.get(object_id, kind)
        if value is None or value.get("deleted"):
            raise no_such(_IDS_OF.get(kind, kind), object_id, param, in_path=in_path)
        return value

    def edit(self, value: Json) -> Json:
        """A copy of a stored object, which takes its place at the end."""
        object_id = value["id"]
        if object_id not in self.changed:
            self.changed[object_id] = copied(self._store.peek(object_id))
        return self.changed[object_id]

    def add(self, value: Json) -> Json:
        """Take in a new object, or another value in an old one's place."""
        if self.account not in {None, self.first_account}:
            value.setdefault(PRIVATE, {})["account"] = self.account
        self.changed[value["id"]] = value
        return value

    def drop_changes(self) -> None:
        """Undo what was changed until now."""
        self.changed.clear()
        self.events.clear()

    def newest(self, kind: str, where: tuple[str, Any] | None = None) -> Iterator[Json]:
        """The objects of a kind, newest first; with `where` those whose indexed field has that value."""
        fresh = [value for value in self.changed.values() if value["object"] == kind]
        for value in reversed(fresh):
            if self._store.position(value["id"]) is None and self._fits(value, where):
                yield value
        for object_id in self._stored_ids(kind, where, fresh):
            stored = self.changed.get(object_id) or self._store.peek(object_id)
            if stored is not None and self._fits(stored, where):
                yield stored

    def _stored_ids(self, kind: str, where: tuple[str, Any] | None, fresh: list[Json]) -> Iterator[str]:
        if where is None:
            return reversed(self._store.ids(kind))
        ids = {*self._store.ids_where(kind, *where), *(value["id"] for value in fresh)}
        positions = {object_id: self._store.position(object_id) for object_id in ids}
        return iter(
            sorted(
                (object_id for object_id, position in positions.items() if position is not None),
                key=lambda object_id: positions[object_id] or 0,
                reverse=True,
            )
        )

    def is_newer(self, one: str, other: str) -> bool:
        """Whether `one` was made after `other`; both are ids of stored objects."""
        return (self._store.position(one) or 0) > (self._store.position(other) or 0)

    def emit(self, event_type: str, value: Json, *, previous: Json | None = None) -> None:
        """Record an event with a snapshot of `value` as it is now; of the fields in `previous` it tells what has changed."""
        data: Json = {"object": shown(value)}
        if previous is not None:
            data["previous_attributes"] = previous_of(shown(previous), data["object"])
        event: Json = {
            "id": new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": data,
            "livemode": False,
            "pending_webhooks": int((self.account or self.first_account) in self._store.announced),
            "request": {"id": self.origin.request_id, "idempotency_key": self.origin.idempotency_key},
            "type": event_type,
            PRIVATE: {"given_up": False},
        }
        self.events.append(self.add(event))

    def _sees(self, value: Json) -> bool:
        return self.account is None or self._store.owner_of(value) == self.account

    def _fits(self, value: Json, where: tuple[str, Any] | None) -> bool:
        return (where is None or value.get(where[0]) == where[1]) and self._sees(value)
