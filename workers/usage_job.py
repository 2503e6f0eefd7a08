"""Daily usage follows the ledger, within seconds, page by page; the history of an older database too."""

import threading
import time
from typing import Final

import structlog
from sqlalchemy import Engine

from db.ledger.daily_usage import BEFORE_ALL, count_page
from workers.periodic import PeriodicTask

EVERY_S: Final = 5.0
REST: Final = 9
"""Each page is followed by a rest so many times as long: counting takes at most a tenth of one processor of Postgres's."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def usage_task(engine: Engine) -> PeriodicTask:
    """What goes round in every jobs process; one counts at a time."""
    return PeriodicTask("daily usage", UsageJob(engine).count, EVERY_S)


class UsageJob:
    """Counts what is new in all orgs."""

    def __init__(self, engine: Engine, *, rest: float = REST) -> None:
        self._engine = engine
        self._rest = rest

    def count(self, stop: threading.Event) -> int:
        """Go through all orgs once; give how many transactions were counted. What a stop or a crash leaves, the next counts."""
        counted = 0
        after: int | None = BEFORE_ALL
        while after is not None and not stop.is_set():
            began_s = time.monotonic()
            page = count_page(self._engine, after)
            counted += page.transactions
            after = page.next_after
            stop.wait((time.monotonic() - began_s) * self._rest)
        log.debug("counted daily usage", transactions=counted)
        return counted
