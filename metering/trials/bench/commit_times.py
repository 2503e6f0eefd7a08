"""When each event was committed, by the meters' own logs."""

import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from metering.trials.bench.rate import MeasuringError
from metering.trials.bench.roles import logged

POLL_EVERY_S: Final = 0.05
LIMIT_S: Final = 30.0


def commit_times(log_paths: Sequence[Path], stream_ids: Sequence[str]) -> list[float]:
    """For each of `stream_ids`, seconds since the epoch when a meter knew that its effect was committed.

    The meters write a line per batch once it is finished: this waits for the lines of the last ones. Raises MeasuringError for
    an entry that lies in no batch.
    """
    give_up_s = time.monotonic() + LIMIT_S
    wanted = [_key(stream_id) for stream_id in stream_ids]
    while True:
        batches = sorted(_batch(line) for path in log_paths for line in logged(path, "batch"))
        lasts = [last for last, _, _ in batches]
        found = [bisect_left(lasts, key) for key in wanted]
        if all(at < len(batches) and batches[at][1] <= key for at, key in zip(found, wanted, strict=True)):
            return [batches[at][2] for at in found]
        if time.monotonic() > give_up_s:
            raise MeasuringError("The meters' logs don't tell of every event that was pushed.")
        time.sleep(POLL_EVERY_S)


def _batch(told: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int], float]:
    """Last and first entry of a batch, and when it was committed. A meter reads entries in their order, without gaps."""
    finished_at = datetime.fromisoformat(told["timestamp"]).timestamp()
    since_commit_s = (told["took_ms"] - told["to_commit_ms"]) / 1_000
    return _key(told["last_stream_id"]), _key(told["first_stream_id"]), finished_at - since_commit_s


def _key(stream_id: str) -> tuple[int, int]:
    time_ms, _, number = stream_id.partition("-")
    return int(time_ms), int(number)
