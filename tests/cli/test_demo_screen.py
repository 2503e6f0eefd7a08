"""What the demo shows, as people see it."""

import io

import pytest
from rich.console import Console, RenderableType

from metering.cli.demo_screen import Figures, OrgFigures, live_view, plain_line, summary
from metering.rules.rejections import Reason
from metering.sandbox.outcome import Outcome
from metering.sandbox.telephony import OrgRecord, Record

BUSY = Figures(
    elapsed_s=12.3,
    draining=False,
    pushed=1_172_345,
    pushed_per_s=1_998.6,
    billed=1_088_888,
    billed_per_s=1_899.2,
    lag=123_456,
    highest_lag=234_567,
    pending=1_000,
    rejected=11_234,
    dropped=71_234,
    balance_cents=1_234_567_89,
    busiest=[
        OrgFigures(f"Demo {number} of 09:15:02", 41_234, 1_234_56, balance_cents, 9_876_54)
        for number, balance_cents in enumerate([9_876_54, 5_000_00, 2_000_00, 1, 0, -1_234_56] + [100] * 4, 1)
    ],
)


def rendered(view: RenderableType, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=True, color_system=None).print(view)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_live_table_fits_and_shows_every_figure(width: int) -> None:
    lines = rendered(live_view(BUSY, 30), width)
    assert len(lines) <= 22  # a terminal of 24 rows, or it would flicker
    assert max(map(len, lines)) <= width
    shown = "\n".join(lines)
    for figure in (
        "1,172,345",
        "1,999/s",
        "1,088,888",
        "123,456",
        "highest 234,567",
        "11,234",
        "71,234",
        "1234567.89",
    ):
        assert figure in shown
    assert "…" not in shown
    assert "12 of 30 s" in shown
    assert all(f"Demo {number} of 09:15:02" in shown for number in range(1, 11))


def test_bars_grow_shorter_as_balances_go_down() -> None:
    lefts = [org.left for org in BUSY.busiest[:6]]
    assert lefts == sorted(lefts, reverse=True)
    assert lefts[0] == 1
    assert lefts[4] == lefts[5] == 0


def test_a_plain_line_is_ascii() -> None:
    line = plain_line(BUSY)
    assert line.isascii()
    for figure in (
        "12 s",
        "1,172,345 (1,999/s)",
        "1,088,888 (1,899/s)",
        "lag 123,456",
        "pending 1,000",
        "1234567.89 USD",
    ):
        assert figure in line


def test_draining_says_how_much_is_left_and_when_it_is_over() -> None:
    draining = Figures(
        **{**{name: getattr(BUSY, name) for name in BUSY.__dataclass_fields__}, "draining": True}
    )
    assert "124,456 events to go" in rendered(live_view(draining, 30), 80)[0]


def test_the_summary_puts_the_ledger_beside_the_record() -> None:
    record = Record(pushed=10, duplicates=2, free=1)
    record.orgs[1] = OrgRecord(5, 9, 100)
    record.rejections.update({Reason.TOO_LARGE: 2})
    outcome = Outcome([1], 0, orgs={1: OrgRecord(4, 8, 90)})
    outcome.rejections.update({"too_large": 1, "unknown_tier": 1})
    lines = rendered(summary(record, outcome, took_s=2, highest_lag=34, drained=True), 80)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["events pushed", "", "10"],
        ["calls billed", "4", "5"],
        ["minutes", "8", "9"],
        ["cents", "90", "100"],
        ["dropped: duplicates + calls of 0 s", "4", "2 + 1"],
        ["rejected: too_large", "1", "2"],
        ["rejected: unknown_tier", "1", "0"],
    ]
    assert lines[-1].strip() == "5 events/s for 2.0 s; highest lag 34 events"


def test_what_waits_still_is_not_called_dropped() -> None:
    lines = rendered(summary(Record(pushed=10), Outcome([1], 0), took_s=2, highest_lag=34, drained=False), 80)
    [dropped] = [line for line in lines if "dropped" in line]
    assert dropped.split("│")[2].strip() == ""
