"""How commands show what operators did."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from db.models import OperatorLogEntry


def log_json(entry: "OperatorLogEntry") -> dict[str, Any]:
    """For programs."""
    return {
        "id": entry.id,
        "at": entry.at,
        "operator": entry.operator,
        "operator_id": entry.operator_id,
        "login": entry.login,
        "action": entry.action,
        "refused": entry.refused,
        "org_id": entry.org_id,
        "subject": entry.subject,
        "reason": entry.reason,
        "details": entry.details,
    }


def log_cells(entry: "OperatorLogEntry") -> list[object]:
    """For people: when, who, did, org, to what, details, why."""
    did = f"REFUSED: {entry.action}" if entry.refused else entry.action
    return [entry.at, entry.operator, did, entry.org_id, entry.subject, _details(entry), entry.reason]


def _details(entry: "OperatorLogEntry") -> str | None:
    return ", ".join(f"{name} {_value(value)}" for name, value in entry.details.items()) or None


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)
