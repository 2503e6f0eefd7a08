"""Keeping Python's cyclic garbage collector out of a busy process's way."""

import gc
from typing import Final

YOUNG_OBJECTS: Final = 50_000
"""How many new objects there may be before the collector looks at them. A batch makes thousands, and nearly all of them die by
counting references alone: with Python's 700 it looked several times a batch, a fifth of a meter's time, and found nothing."""


def tune_garbage_collector() -> None:
    """Have the collector look less often, and never again at what is there now: a process calls this once it has started."""
    gc.collect()
    gc.freeze()
    _, middle, old = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, middle, old)
