"""US dollars as integers: cents for amounts, millionths for rates and fees (docs/reference/money-rules.md)."""

import re

MICROUSD_PER_USD = 1_000_000
MAX_USD = 1_000_000
"""The highest rate per minute and the highest connect fee: far above any real one, far below 64 bits."""

_DECIMALS = 6
_PLAIN_DECIMAL = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,6}))?")


def format_usd(amount_cents: int) -> str:
    """Write cents as dollars with two decimals: 125000 is "1250.00", -16 is "-0.16"."""
    dollars, cents = divmod(abs(amount_cents), 100)
    return f"{'-' if amount_cents < 0 else ''}{dollars}.{cents:02d}"


def parse_usd(text: str) -> int:
    """Read a rate or a fee in USD, "0.08", as exact micro-USD, 80000.

    ValueError, with the rule, for anything but a plain decimal from 0 to `MAX_USD` with at most 6 decimals.
    """
    match = _PLAIN_DECIMAL.fullmatch(text)
    if match:
        dollars, decimals = match.groups(default="")
        microusd = int(dollars) * MICROUSD_PER_USD + int(decimals.ljust(_DECIMALS, "0"))
        if microusd <= MAX_USD * MICROUSD_PER_USD:
            return microusd
    raise ValueError(f"must be plain USD from 0 to {MAX_USD} with at most {_DECIMALS} decimals, such as 0.08")


def format_microusd(microusd: int) -> str:
    """Write micro-USD as dollars, as a description shows a rate (docs/reference/money-rules.md#descriptions).

    At least two decimals, no trailing zeros past them: 80000 is "0.08", 5000 is "0.005", 1000000 is "1.00".
    """
    dollars, millionths = divmod(abs(microusd), MICROUSD_PER_USD)
    decimals = f"{millionths:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if microusd < 0 else ''}{dollars}.{decimals}"
