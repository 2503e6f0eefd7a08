import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.rules.money import MAX_USD, format_microusd, format_usd, parse_usd


@pytest.mark.parametrize(
    ("amount_cents", "text"),
    [
        (0, "0.00"),
        (5, "0.05"),
        (-5, "-0.05"),
        (-16, "-0.16"),
        (99, "0.99"),
        (100, "1.00"),
        (-100, "-1.00"),
        (125000, "1250.00"),
        (2**63 - 1, "92233720368547758.07"),
    ],
)
def test_cents_are_written_as_dollars(amount_cents: int, text: str) -> None:
    assert format_usd(amount_cents) == text


@pytest.mark.parametrize(
    ("text", "microusd"),
    [
        ("0", 0),
        ("0.08", 80_000),
        ("0.005", 5_000),
        ("0.0125", 12_500),
        ("0.333333", 333_333),
        ("0.000001", 1),
        ("00.10", 100_000),
        ("12", 12_000_000),
        ("1000000", 1_000_000_000_000),
        ("1000000.000000", 1_000_000_000_000),
    ],
)
def test_a_rate_is_read_exactly(text: str, microusd: int) -> None:
    assert parse_usd(text) == microusd


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 0.08",
        "0.08\n",
        "-0.08",
        "+0.08",
        "$0.08",
        "0,08",
        ".08",
        "8.",
        "8e-2",
        "1_000",
        "0.0000001",
        "0.0800000",
        "1000000.000001",
        "1000001",
        "9" * 5000,
        "NaN",
        "Infinity",
        "\N{ARABIC-INDIC DIGIT ZERO}.08",
        "0.08\0",
    ],
)
def test_what_is_no_rate_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match="plain USD from 0 to 1000000 with at most 6 decimals"):
        parse_usd(text)


@pytest.mark.parametrize(
    ("microusd", "text"),
    [
        (0, "0.00"),
        (80_000, "0.08"),
        (100_000, "0.10"),
        (5_000, "0.005"),
        (12_500, "0.0125"),
        (333_333, "0.333333"),
        (1, "0.000001"),
        (1_000_000, "1.00"),
        (1_500_000, "1.50"),
        (10_000_000, "10.00"),
        (-80_000, "-0.08"),
    ],
)
def test_a_rate_shows_two_decimals_and_no_zeros_past_them(microusd: int, text: str) -> None:
    assert format_microusd(microusd) == text


@given(st.integers(0, MAX_USD * 1_000_000))
def test_a_rate_survives_writing_and_reading(microusd: int) -> None:
    assert parse_usd(format_microusd(microusd)) == microusd
