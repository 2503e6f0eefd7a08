"""How long to wait before something is tried again."""

import random
from collections.abc import Iterator

from metering.client.limits import FIRST_WAIT_S, LONGEST_WAIT_S


def backoff_s() -> Iterator[float]:
    """Seconds to wait before each next try, without end: doubling, and each shortened at random by up to half."""
    bound_s = FIRST_WAIT_S
    while True:
        yield bound_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load needs no secrets
        bound_s = min(bound_s * 2, LONGEST_WAIT_S)
