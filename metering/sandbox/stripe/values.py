"""What all objects are made of: JSON values, ids as Stripe writes them, times as whole seconds."""

import os
from datetime import datetime
from string import ascii_letters, digits
from typing import Any, Final

Json = dict[str, Any]
"""An object of the API. What is stored is never changed in place: see store.Work.edit."""

PRIVATE: Final = "_sandbox"
"""The field in which an object keeps what Stripe would know and never show; it is left out of every answer."""

API_VERSION: Final = "2026-10-28.endive"
"""The version of the API whose shapes the objects have, and that events name."""

_ALPHABET: Final = ascii_letters + digits


def new_id(prefix: str, length: int = 24) -> str:
    """A new id such as `pi_3Qx...`: random, so that nobody comes to rely on their order."""
    return f"{prefix}_{''.join([_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(length)])}"


def new_secret(object_id: str) -> str:
    """The client secret of an intent: what lets its customer's browser finish it."""
    return new_id(f"{object_id}_secret", 25)


def unix_seconds(at: datetime) -> int:
    """A time as the API writes it."""
    return int(at.timestamp())


def copied(value: Any) -> Any:
    """A deep copy of a JSON value; several times as fast as `copy.deepcopy`, which has to expect anything."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [copied(each) for each in value]
    return value


def shown(value: Any) -> Any:
    """A deep copy as the API shows it: without what is private."""
    if isinstance(value, dict):
        return {key: shown(each) for key, each in value.items() if key != PRIVATE}
    if isinstance(value, list):
        return [shown(each) for each in value]
    return value


def plain(value: Json) -> Json:
    """An object as the API shows it: `shown`, for callers who want to know that it is one."""
    result: Json = shown(value)
    return result


def previous_of(before: Json, after: Json) -> Json:
    """What an event says has changed: the old values of what is different, within hashes too; null for what is new in those."""
    changes: Json = {}
    for name, old in before.items():
        new = after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if old != new:
                changes[name] = dict.fromkeys(new.keys() - old.keys()) | previous_of(old, new)
        elif old != new:
            changes[name] = old
    return changes


def page_of(url: str, data: list[Json], *, has_more: bool) -> Json:
    """A list as the API answers it."""
    return {"object": "list", "data": data, "has_more": has_more, "url": url}
