"""How long to wait before trying again what an outage stopped."""

import random
from collections.abc import Iterator


def backoff_s(first_s: float = 0.1, longest_s: float = 3.0) -> Iterator[float]:
    """Seconds to wait before each next try, without end: doubling from `first_s` to `longest_s`.

    Each is shortened at random by up to half, so that processes that failed together don't come back together.
    """
    bound_s = first_s
    while True:
        yield bound_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load needs no secrets
        bound_s = min(bound_s * 2, longest_s)
