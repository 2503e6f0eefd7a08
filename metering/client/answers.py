"""Reading what Redis answers: a client that was given may decode by itself."""

from typing import Any


def as_text(answer: Any) -> str:
    """A client that was given may decode by itself."""
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def whole_number(answer: Any) -> int | None:
    try:
        return None if answer is None else int(answer)
    except ValueError:  # somebody else's doing; the state decides alone
        return None
