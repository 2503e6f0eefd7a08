"""Who sends keys that are none: after some of them, what comes from there isn't looked up for a while.

Nobody can guess a key of 256 random bits; this keeps whoever tries, or a program with an old key that asks in a loop, from
costing Postgres a look each time. It is counted in this process: no other server has to answer before a key is looked at, at the
price that several processes allow several times as many.

Other customers may share the address, behind one proxy or network, and must not be shut out by one of them: a key that was good
lately is looked up all the same. That it was good once opens nothing: it is looked up afresh each time.
"""

import hashlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

from cachetools import LRUCache, TTLCache

MAX_FAILURES: Final = 60
"""How many wrong keys an address may send within the window; then it waits until that is over."""
WINDOW_S: Final = 60.0
MAX_ADDRESSES: Final = 10_000
"""How many addresses are kept in mind; one more, and the one that has been longest is forgotten."""
MAX_KEYS: Final = 10_000
"""How many keys that were good lately are kept in mind, as hashes."""

_IPV6_SITE_BITS: Final = 64
"""Whoever has one IPv6 address has all of its network."""


@dataclass(slots=True)
class _Failures:
    since_s: float
    count: int = 0


class Strangers:
    """Of one server; in its event loop only."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures: TTLCache[str, _Failures] = TTLCache(MAX_ADDRESSES, WINDOW_S, timer=monotonic)
        self._good: LRUCache[bytes, bool] = LRUCache(MAX_KEYS)

    def wait_s(self, address: str, key: str) -> int | None:
        """How many seconds whoever sends `key` from `address` has to wait; None if it may be looked up."""
        failures = self._failures.get(_site(address))
        if failures is None or failures.count < MAX_FAILURES or self.was_good(key):
            return None
        return max(ceil(failures.since_s + WINDOW_S - self._monotonic()), 1)

    def was_good(self, key: str) -> bool:
        """Whether a key was good lately."""
        return _digest(key) in self._good

    def note_good(self, key: str) -> None:
        """Note that a key is one."""
        self._good[_digest(key)] = True

    def note_wrong(self, address: str, key: str) -> None:
        """Note that a key is none, or none any more."""
        self._good.pop(_digest(key), None)
        site = _site(address)
        failures = self._failures.get(site)
        if failures is None:
            failures = self._failures[site] = _Failures(self._monotonic())
        failures.count += 1


def _site(address: str) -> str:
    """What is counted as one: an IPv4 address, or an IPv6 network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:  # noqa: PLR2004 - IPv4
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_SITE_BITS), strict=False))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
