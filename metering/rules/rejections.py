"""Why an event cannot be billed and becomes a dead letter (docs/reference/call-events.md#rejected-events)."""

import re
from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL_CHARS = 500
_NAMED_ORG = re.compile(rb'"org_id"\s*:\s*"?([0-9]{1,19})')
"""As the indexes of rejected events have it (db/models/rejected_event.py)."""


class Reason(StrEnum):
    """The reasons that are stored with a rejected event and that operators filter by."""

    MALFORMED_JSON = "malformed_json"
    INVALID_FIELD = "invalid_field"
    TOO_LARGE = "too_large"
    UNKNOWN_ORG = "unknown_org"
    UNKNOWN_TIER = "unknown_tier"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"
    UNPROCESSABLE = "unprocessable"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A reason, and one plain sentence about it that names the field.

    The sentence may quote what a producer sent, so it is made fit for a text column: NUL and lone surrogates
    are shown as escapes, and it is cut at `MAX_DETAIL_CHARS` characters.
    """

    reason: Reason
    detail: str

    def __post_init__(self) -> None:
        text = self.detail.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", r"\x00")
        object.__setattr__(self, "detail", text[:MAX_DETAIL_CHARS])


def named_org(raw: bytes) -> int | None:
    """The org that an event's bytes name, JSON or not; None where they name none."""
    found = _NAMED_ORG.search(raw)
    return int(found[1]) if found and 0 < int(found[1]) < 2**63 else None
