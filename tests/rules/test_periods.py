from datetime import UTC, datetime

import pytest

from metering.rules.periods import since, until


def utc(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, us: int = 0
) -> datetime:
    return datetime(year, month, day, hour, minute, second, us, UTC)


@pytest.mark.parametrize(
    ("text", "first", "end"),
    [
        ("2026-04-20", utc(2026, 4, 20), utc(2026, 4, 21)),
        ("20260420", utc(2026, 4, 20), utc(2026, 4, 21)),
        ("2026-12-31", utc(2026, 12, 31), utc(2027, 1, 1)),
        ("2024-02-29", utc(2024, 2, 29), utc(2024, 3, 1)),
        ("0001-01-01", utc(1, 1, 1), utc(1, 1, 2)),
        ("9999-12-31", utc(9999, 12, 31), None),
    ],
)
def test_a_date_stands_for_its_whole_day(text: str, first: datetime, end: datetime | None) -> None:
    assert since(text) == first
    assert until(text) == end


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-04-20T18:25:06.201Z", utc(2026, 4, 20, 18, 25, 6, 201_000)),
        ("2026-04-20T18:25:06.201", utc(2026, 4, 20, 18, 25, 6, 201_000)),
        ("2026-04-20T18:25:06+02:00", utc(2026, 4, 20, 16, 25, 6)),
        ("2026-04-20T18:25:06-02:00", utc(2026, 4, 20, 20, 25, 6)),
        ("2026-04-20T18:25:06 02:00", utc(2026, 4, 20, 16, 25, 6)),
        ("2026-04-20T18:25:06.201 0200", utc(2026, 4, 20, 16, 25, 6, 201_000)),
        ("2026-04-20T00:00:00", utc(2026, 4, 20)),
        ("2026-04-20t18:25:06z", utc(2026, 4, 20, 18, 25, 6)),
        ("2026-04-20 18:25", utc(2026, 4, 20, 18, 25)),
        ("20260420T182506Z", utc(2026, 4, 20, 18, 25, 6)),
        ("2026-04-20T23:59:59.999999Z", utc(2026, 4, 20, 23, 59, 59, 999_999)),
    ],
)
def test_a_time_is_an_instant_on_either_side(text: str, at: datetime) -> None:
    assert since(text) == until(text) == at


@pytest.mark.usefixtures("far_from_utc")
@pytest.mark.parametrize("text", ["2026-04-20T18:25:06", "2026-04-20T18:25:06Z", "2026-04-20T20:25:06+02:00"])
def test_the_zone_of_the_machine_counts_for_nothing(text: str) -> None:
    assert since(text).isoformat() == "2026-04-20T18:25:06+00:00"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "yesterday", "2026-04", "2026-13-01", "2026-02-30", "1776709506", "2026-04-20T25:00:00Z"),
        *(
            "2026-04-20T18:25:06+99:00",
            "null",
            "2026-04-20Z",
            "٢٠٢٦-٠٤-٢٠",
            "2026-04-20T18:25:06Z\0",
            "2026-04-20T18:25:06ZZ",
            "2026-04-20x18:25",
        ),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "10000-01-01"),
    ],
)
def test_anything_else_is_refused_with_the_rule(text: str) -> None:
    for edge in (since, until):
        with pytest.raises(ValueError, match="must be an ISO 8601 date or time"):
            edge(text)
