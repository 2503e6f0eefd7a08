"""Charts: what is drawn is what was measured, in its place."""

import re
from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks.chart import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Line, draw, short
from tests.benchmarks.draw import CHARTS

SPREAD = {"median": 20.0, "lowest": 10.0, "highest": 30.0, "repetitions": 3}
LATENCY = {"p50_ms": 3.0, "p99_ms": 20.0, "highest_ms": 40.0, "count": 9}
RESULT = {
    "batches": [
        {"workload": {"batch_limit": limit}, "per_second": {**SPREAD, "median": 10.0 + limit / 100}}
        for limit in (1, 100, 1_000)
    ],
    "latency": {
        "ladder": [{"per_second": rate, "commit": LATENCY, "gate": LATENCY} for rate in (1_000.0, 2_000.0)]
    },
    "ledger": [{"ledger_debits": size, "measured": {"per_second": SPREAD}} for size in (0, 1_000_000)],
}


def test_a_linear_axis_has_round_ticks_within_it() -> None:
    assert Axis("", 0, 44_000).ticks() == [0, 10_000, 20_000, 30_000, 40_000]
    assert Axis("", 0, 1.2).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2])


def test_a_logarithmic_axis_has_powers_of_ten_at_even_distances() -> None:
    axis = Axis("", 1, 1_000, logarithmic=True)
    assert axis.ticks() == [1, 10, 100, 1_000]
    assert [axis.share(tick) for tick in axis.ticks()] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_point_lies_where_its_values_say() -> None:
    svg = draw("<t>", Axis("x", 0, 10), Axis("y", 0, 100), [Line("l", [(0, 0, 0, 0), (10, 100, 90, 100)])])
    root = ET.fromstring(svg)  # noqa: S314 - our own
    circles = [each for each in root if each.tag.endswith("circle")]
    assert (float(circles[0].attrib["cx"]), float(circles[1].attrib["cx"])) == (LEFT, WIDTH - RIGHT)
    assert float(circles[1].attrib["cy"]) == TOP
    assert float(circles[0].attrib["cy"]) > HEIGHT / 2


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_of_a_run_stays_within_its_frame(name: str) -> None:
    svg = CHARTS[name](RESULT)
    ET.fromstring(svg)  # noqa: S314 - our own
    for x, y in re.findall(r"([\d.-]+),([\d.-]+)", " ".join(re.findall(r'points="([^"]+)"', svg))):
        assert LEFT <= float(x) <= WIDTH - RIGHT
        assert TOP <= float(y) <= HEIGHT


def test_numbers_are_short() -> None:
    assert [short(number) for number in (0, 0.5, 20, 20_000, 2_500_000)] == ["0", "0.5", "20", "20k", "2.5M"]
