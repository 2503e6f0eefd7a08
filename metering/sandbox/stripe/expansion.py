"""`expand`: objects in place of their ids."""

from collections.abc import Sequence
from typing import Any, Final

from metering.sandbox.stripe.errors import InvalidRequestError
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json, page_of, shown

MAX_DEPTH: Final = 4

_EXPANDABLE: Final[dict[str, dict[str, str]]] = {
    "balance_transaction": {},
    "charge": {
        "balance_transaction": "balance_transaction",
        "customer": "customer",
        "payment_intent": "payment_intent",
    },
    "customer": {},
    "invoice_settings": {"default_payment_method": "payment_method"},
    "dispute": {"charge": "charge", "payment_intent": "payment_intent"},
    "payment_intent": {"customer": "customer", "latest_charge": "charge", "payment_method": "payment_method"},
    "payment_method": {"customer": "customer"},
    "refund": {
        "balance_transaction": "balance_transaction",
        "charge": "charge",
        "customer": "customer",
        "failure_balance_transaction": "balance_transaction",
        "payment_intent": "payment_intent",
        "payment_method": "payment_method",
    },
    "setup_intent": {"customer": "customer", "payment_method": "payment_method"},
}
"""Which fields of which objects are ids that can be expanded, and into what."""


def expanded(work: Work, answer: Json, paths: Sequence[str]) -> Json:
    """`answer`, which is changed, with what `paths` name in it. Raises InvalidRequestError for what can't be."""
    for path in paths:
        parts = path.split(".")
        if len(parts) > MAX_DEPTH:
            raise InvalidRequestError(
                f"You cannot expand more than {MAX_DEPTH} levels of a property. Property: {path}",
                param="expand",
            )
        _expand(work, answer, parts, path, answer.get("object", ""))
    return answer


def _expand(work: Work, value: Any, parts: Sequence[str], path: str, kind: str) -> None:
    if value is None or not parts:
        return
    if isinstance(value, list):
        for each in value:
            _expand(work, each, parts, path, each.get("object", ""))
        return
    name, rest = parts[0], parts[1:]
    if kind == "list" and name == "data":
        _expand(work, value["data"], rest, path, "")
    elif kind == "charge" and name == "refunds":
        value.setdefault("refunds", _refunds_of(work, value["id"]))
        _expand(work, value["refunds"], rest, path, "list")
    elif kind == "customer" and name == "invoice_settings":
        _expand(work, value[name], rest, path, "invoice_settings")
    elif name in _EXPANDABLE.get(kind, {}):
        target = _EXPANDABLE[kind][name]
        if isinstance(value[name], str):
            found = work.get(value[name], target)
            value[name] = value[name] if found is None else shown(found)
        _expand(work, value[name], rest, path, target)
    else:
        raise InvalidRequestError(
            f"This property cannot be expanded ({path}). You may want to try expanding 'data.{path}' instead."
            if kind == "list"
            else f"This property cannot be expanded ({path}).",
            param="expand",
        )


def _refunds_of(work: Work, charge_id: str) -> Json:
    refunds = [shown(each) for each in work.newest("refund", ("charge", charge_id))]
    return page_of(f"/v1/charges/{charge_id}/refunds", refunds[:10], has_more=len(refunds) > 10)  # noqa: PLR2004
