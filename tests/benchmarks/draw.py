"""Draws what a full run measured, into pictures of docs/explanation/performance.md.

`metering bench --full --json > run.json`, then `python -m tests.benchmarks.draw run.json docs/explanation/performance`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.chart import Axis, Line, draw

ROOM = 1.1
"""Above the highest value."""


def batch_chart(batches: list[dict[str, Any]]) -> str:
    """Throughput against the largest batch."""
    points = [(each["workload"]["batch_limit"], *_spread(each["per_second"])) for each in batches]
    return draw(
        "Throughput against the largest batch, one meter",
        Axis("events in a batch, at most", min(at for at, *_ in points), max(at for at, *_ in points), True),
        Axis("events per second", 0, ROOM * max(highest for *_, highest in points)),
        [Line("median, lowest and highest", points)],
    )


def latency_chart(ladder: list[dict[str, Any]]) -> str:
    """Latency against load."""
    lines = [
        Line(
            f"{effect}, {rank}", [(each["per_second"], *[each[effect][f"{rank}_ms"]] * 3) for each in ladder]
        )
        for effect in ("commit", "gate")
        for rank in ("p50", "p99")
    ]
    values = [value for line in lines for _, value, _, _ in line.points]
    return draw(
        "Latency from an event's scheduled time, one meter",
        Axis("events per second, pushed whatever happens", 0, ROOM * ladder[-1]["per_second"]),
        Axis("milliseconds", 10 ** _power_below(min(values)), ROOM * max(values), True),
        lines,
    )


def ledger_chart(ledger: list[dict[str, Any]]) -> str:
    """Throughput against what the ledger holds."""
    points = [(each["ledger_debits"], *_spread(each["measured"]["per_second"])) for each in ledger]
    return draw(
        "Throughput against the size of the ledger, one meter",
        Axis("debits in the ledger", 0, points[-1][0]),
        Axis("events per second", 0, ROOM * max(highest for *_, highest in points)),
        [Line("median, lowest and highest", points)],
    )


CHARTS: dict[str, Callable[[Any], str]] = {
    "batches": lambda result: batch_chart(result["batches"]),
    "latency": lambda result: latency_chart(result["latency"]["ladder"]),
    "ledger": lambda result: ledger_chart(result["ledger"]),
}


def _spread(per_second: dict[str, float]) -> tuple[float, float, float]:
    return per_second["median"], per_second["lowest"], per_second["highest"]


def _power_below(value: float) -> int:
    power = 0
    while 10**power > value:
        power -= 1
    return power


def main() -> None:
    """Draw every chart whose part was measured."""
    result: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in CHARTS.items():
        if result.get(name) and (name != "latency" or result[name]["ladder"]):
            (folder / f"{name}.svg").write_text(chart(result))


if __name__ == "__main__":
    main()
