"""What the demo shows, as people see it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from metering.rules.rejections import Reason
from metering.sandbox.telephony.call_record import CallRecord, OrgRecord
from metering.trials.demo.screen import ChargeFigures, Figures, GateFigures, OrgFigures, live_view, plain_line
from metering.trials.demo.summary import WORST, overspending_table, push_to_gate_sentence, summary, why
from metering.trials.exhaustions import Overspending
from metering.trials.outcome import Outcome

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
    gates=GateFigures(
        open=987,
        exhausted=654,
        suspended=1,
        running=4_321,
        started=1_090_817,
        refused_inbound=123_987,
        refused_outbound=124_765,
        unanswered=0,
        signals=23_456,
        signals_per_s=1_234.5,
        push_to_gate_median_s=0.0123,
        push_to_gate_longest_s=12.3456,
    ),
    charges=ChargeFigures(open=12, paused=3, waiting=45, month_left_cents=1_234_56),
    busiest=[
        OrgFigures(
            f"Demo {number} of 09:15:02",
            "reload, paused",
            1_234_56,
            balance_cents,
            9_876_54,
            "open" if balance_cents > 0 else "exhausted",
        )
        for number, balance_cents in enumerate([9_876_54, 5_000_00, 2_000_00, 1, 0, -1_234_56] + [100] * 3, 1)
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
    shown = " ".join("\n".join(lines).split())
    for figure in (
        "1,172,345",
        "1,999/s",
        "1,088,888",
        "123,456",
        "highest 234,567",
        "11,234",
        "71,234",
        "1234567.89",
        "987 open",
        "654 exhausted",
        "running 4,321 1,090,817 started",
        "refused 248,752 in 123,987 out 124,765",
        "to gate 12 ms longest 12,346 ms",
        "signals 23,456 1,234.5/s charges 12 open",
        "reloads 3 paused capped 45 month left 1234.56",
        "Demo 1 of 09:15:02 reload, paused 1234.56 9876.54 open",
    ):
        assert figure in shown
    assert "…" not in shown
    assert "12 of 30 s" in shown
    assert all(f"Demo {number} of 09:15:02" in shown for number in range(1, 10))


def test_each_org_shows_its_gate() -> None:
    lines = [line for line in rendered(live_view(BUSY, 30), 80) if "of 09:15:02" in line]
    assert ["exhausted" in line for line in lines] == [org.balance_cents <= 0 for org in BUSY.busiest]


def test_calls_that_could_not_be_asked_for_are_shown() -> None:
    figures = replace(BUSY, gates=replace(BUSY.gates, unanswered=17))
    assert "17 not asked" in "\n".join(rendered(live_view(figures, 30), 80))
    assert "  not asked 17  " in plain_line(figures)


def test_after_the_last_start_it_says_how_many_calls_run() -> None:
    assert "4,321 running" in rendered(live_view(replace(BUSY, elapsed_s=30.5), 30), 80)[0]


def test_before_a_gate_has_closed_there_is_no_time() -> None:
    gates = replace(BUSY.gates, push_to_gate_median_s=None, push_to_gate_longest_s=None)
    assert plain_line(replace(BUSY, gates=gates)).endswith("push to gate -, longest -")


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
        "running 4,321",
        "gates open 987 exhausted 654 suspended 1",
        "refused in 123,987 out 124,765",
        "signals 23,456 (1,234.5/s)",
        "charges open 12 reloads paused 3 capped 45 month left 1234.56",
        "push to gate 12 ms, longest 12,346 ms",
    ):
        assert figure in line


def test_without_a_limit_nothing_is_said_to_be_left() -> None:
    figures = replace(BUSY, charges=replace(BUSY.charges, month_left_cents=None))
    assert "capped 45 month left -" in plain_line(figures)
    assert "month left -" in "\n".join(rendered(live_view(figures, 30), 80))


def test_draining_says_how_much_is_left_and_when_it_is_over() -> None:
    draining = replace(BUSY, draining=True)
    assert "124,456 events to go" in rendered(live_view(draining, 30), 80)[0]


def test_the_summary_puts_the_ledger_beside_the_record() -> None:
    record = CallRecord(pushed=10, duplicates=2, free=1)
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
    lines = rendered(
        summary(CallRecord(pushed=10), Outcome([1], 0), took_s=2, highest_lag=34, drained=False), 80
    )
    [dropped] = [line for line in lines if "dropped" in line]
    assert dropped.split("│")[2].strip() == ""


def test_the_overspending_shows_the_worst_and_the_sum_of_all() -> None:
    orgs = [
        Overspending(
            number,
            -100 * number,
            crossing_cents=10,
            running=3,
            running_cents=100 * number - 15,
            ended=1,
            ended_cents=5,
        )
        for number in range(12, 0, -1)
    ]
    lines = rendered(overspending_table(orgs), 80)
    assert max(map(len, lines)) <= 80
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert len(rows) == WORST + 1
    assert rows[0] == ["12", "-12.00", "-0.10", "3: -11.85", "1: -0.05"]
    assert rows[-1] == ["all 12", "-78.00", "-1.20", "36: -76.20", "12: -0.60"]
    assert "12 orgs that were exhausted" in lines[0]


def test_the_worst_org_is_explained_in_words() -> None:
    org = Overspending(7, -60, crossing_cents=4, running=3, running_cents=56)
    assert why(org) == "Org 7 went to -0.60: 3 calls running when the gate closed cost 0.56 after it."


def test_times_to_the_gate_say_how_they_were_measured() -> None:
    sentence = push_to_gate_sentence([0.010, 0.020, 0.300])
    assert sentence.startswith("Push to gate, 3 times: median 20 ms, longest 300 ms:\n")
    assert all(len(line) < 80 for line in sentence.splitlines())
