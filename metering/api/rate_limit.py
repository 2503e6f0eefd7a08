"""Rate limit of failed authentication: who sends keys or tokens that are none, and who sends good ones.

Everybody behind one proxy or network has one address: so nothing good may be refused for what else came from there. Whatever is
sent is looked up, or compared, whoever sends it; only what proves to be wrong counts against its address, and after
`MAX_FAILURES` within a window is answered 429, a second late (metering/api/errors.py). So a program with an old key that asks
in a loop is slowed down, and whoever guesses at telephony's token has sixty guesses a minute, and then one a second for each
connection that he holds open. API keys, of 256 random bits, nobody can guess.

What that costs at worst: for wrong keys one statement in Postgres at a time, a hundred a second at most, whatever their number
(metering/api/key_lookups.py); in this process what any small request costs. A good key that was not used lately waits for those
statements, some 10 ms; one that was used lately is looked up afresh too, but in no line with unknown keys.

It is counted in this process: several allow several times as many.
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
"""How many wrong keys an address may send within the window; those after them are answered 429, until that is over."""
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


class AuthRateLimit:
    """Of one server; in its event loop only."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures: TTLCache[str, _Failures] = TTLCache(MAX_ADDRESSES, WINDOW_S, timer=monotonic)
        self._good: LRUCache[bytes, int] = LRUCache(MAX_KEYS)

    def clear(self) -> None:
        """Forget every failure and every good key, as if the server had just started."""
        self._failures.clear()
        self._good.clear()

    def org_of(self, key: str) -> int | None:
        """The org of a key that was good lately: whose share of threads it is to use, while it is looked up afresh."""
        org_id: int | None = self._good.get(_digest(key))
        return org_id

    def record_success(self, key: str, org_id: int) -> None:
        """Note that a key is one, and whose."""
        self._good[_digest(key)] = org_id

    def record_failure(self, address: str, key: str) -> int | None:
        """Note that a key or token is none, or none any more; give how long such are too many from there, if they are."""
        self._good.pop(_digest(key), None)
        site = _site(address)
        failures = self._failures.get(site)
        if failures is None:
            failures = self._failures[site] = _Failures(self._monotonic())
        failures.count += 1
        if failures.count <= MAX_FAILURES:
            return None
        return max(ceil(failures.since_s + WINDOW_S - self._monotonic()), 1)


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
