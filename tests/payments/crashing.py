"""Crashes in this very process: what runs is torn off at a crash point, as if it had been killed there."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from db.payments import settlement
from metering.payments import cards, charges, settling, top_ups
from metering.runtime.crashpoints import CrashPoint


class Crash(BaseException):
    """The process has ended here."""


@contextmanager
def crashing_at(point: CrashPoint, occurrence: int = 1) -> Iterator[None]:
    """Tear off what reaches `point` for the `occurrence`th time; swallow the Crash, as the world does. Else nothing happens."""
    left = occurrence

    def reach(reached: CrashPoint) -> None:
        nonlocal left
        if reached is point:
            left -= 1
            if left == 0:
                raise Crash(point.value)

    modules = (cards, charges, settlement, settling, top_ups)
    patches = [patch.object(module, "reach", reach) for module in modules]
    for each in patches:
        each.start()
    try:
        yield
    except Crash:
        pass
    finally:
        for each in patches:
            each.stop()
