"""When events were committed, read from meters' logs."""

import json
from pathlib import Path

import pytest

from metering.trials.bench import commit_times as module
from metering.trials.bench.commit_times import commit_times
from metering.trials.bench.rate import MeasuringError


def line(first: str, last: str, second: int, *, to_commit_ms: float, took_ms: float) -> str:
    return json.dumps(
        {
            "event": "batch",
            "timestamp": f"2026-04-20T18:25:{second:02}.500000Z",
            "first_stream_id": first,
            "last_stream_id": last,
            "to_commit_ms": to_commit_ms,
            "took_ms": took_ms,
        }
    )


AT_20_S = 1776709520.5


def test_an_event_was_committed_when_its_batch_was(tmp_path: Path) -> None:
    one, other = tmp_path / "one.log", tmp_path / "other.log"
    one.write_text(
        "not JSON\n"
        + line("9-0", "9-5", 20, to_commit_ms=40, took_ms=100)
        + "\n"
        + line("10-3", "11-0", 22, to_commit_ms=5, took_ms=5)
        + '\n{"event": "batch", "timest'
    )
    other.write_text(
        json.dumps({"event": "meter is ready"})
        + "\n"
        + line("9-6", "10-2", 21, to_commit_ms=0, took_ms=250)
        + "\n"
    )
    # As numbers: as text 10-2 would come before 9-6.
    found = commit_times([one, other], ["9-0", "9-5", "9-6", "10-2", "10-3", "11-0"])
    assert found == pytest.approx(
        [AT_20_S - 0.06, AT_20_S - 0.06, AT_20_S + 0.75, AT_20_S + 0.75, AT_20_S + 2, AT_20_S + 2]
    )


@pytest.mark.parametrize("stream_id", ["8-9", "9-6", "12-0"])
def test_an_event_of_no_batch_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream_id: str
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.0)
    log = tmp_path / "log"
    log.write_text(
        line("9-0", "9-5", 20, to_commit_ms=1, took_ms=1)
        + "\n"
        + line("9-7", "11-0", 21, to_commit_ms=1, took_ms=1)
        + "\n"
    )
    with pytest.raises(MeasuringError, match="every event"):
        commit_times([log], [stream_id])
