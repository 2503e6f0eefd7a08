"""The event parser under random input, a short run; `python -m tests.hostile.fuzz_events` makes a long one."""

from collections import Counter, deque

import pytest

from metering.rules import events
from metering.rules.rejections import Reason
from tests.hostile.fuzz_events import check, inputs


def test_the_parser_and_a_second_reader_of_the_contract_agree() -> None:
    read_as = Counter(check(raw) for raw in inputs(seed=20260420, count=6_000))
    # All kinds of input are there, so that the agreement is about something.
    assert read_as["billable"] > 500
    assert read_as[Reason.MALFORMED_JSON.value] > 500
    assert read_as[Reason.INVALID_FIELD.value] > 500


def test_a_parser_that_is_wrong_by_a_little_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_DURATION_DECIMALS", 7)
    with pytest.raises(AssertionError):
        deque(map(check, inputs(seed=20260420, count=6_000)), maxlen=0)
