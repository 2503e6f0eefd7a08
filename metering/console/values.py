"""Values from the command line, for several commands; where typer can't check, the sentence names the option and the rule."""

from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from metering.console.errors import CommandError

MAX_ID: Final = 2**63 - 1
MAX_REASON_CHARS: Final = 500
MAX_KEY_CHARS: Final = 200
"""Of an operator's own key, by which the same command is done once."""
MAX_INTENT_CHARS: Final = 255

OrgArgument = Annotated[int, typer.Argument(metavar="ORG", help="The org's id.", show_default=False)]
OptionalOrgArgument = Annotated[
    int | None, typer.Argument(metavar="[ORG]", help="The org's id.", show_default=False)
]


def id_value(name: str, value: int) -> int:
    """An id: a positive 64-bit integer."""
    if 1 <= value <= MAX_ID:
        return value
    raise CommandError(f"{name}: must be a whole number from 1 to {MAX_ID}.")


def text_value(name: str, value: str, *, max_chars: int) -> str:
    """Text fit for a column and for a terminal."""
    if value.strip() and len(value) <= max_chars and value.isprintable():
        return value
    raise CommandError(f"{name}: must be 1 to {max_chars} printable characters on one line.")


def time_value(name: str, value: str) -> datetime:
    """A time with its offset, in UTC."""
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise CommandError(
        f"{name}: must be an ISO 8601 date and time with an offset, such as 2026-05-01T00:00:00Z."
    )
