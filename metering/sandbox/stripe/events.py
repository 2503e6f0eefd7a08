"""The list of events, as far back as Stripe keeps it."""

from typing import Final

from metering.sandbox.stripe.errors import InvalidRequestError, no_such
from metering.sandbox.stripe.listing import page
from metering.sandbox.stripe.params import EXPAND, LISTING, Array, Boolean, Hash, Text
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import PRIVATE, Json

KEPT_S: Final = 30 * 24 * 60 * 60
"""How long events can be asked for."""

RETRIEVE: Final = Hash(EXPAND)
LIST: Final = Hash({**LISTING, "delivery_success": Boolean(), "type": Text(), "types": Array(Text())})
MAX_TYPES: Final = 20


def retrieve(work: Work, params: Json, event_id: str) -> Json:  # noqa: ARG001
    """An event that is not too old."""
    event = work.find(event_id, "event", "id", in_path=True)
    if event["created"] < work.now - KEPT_S:
        raise no_such("event", event_id, "id", in_path=True)
    return event


def list_events(work: Work, params: Json) -> Json:
    """A page of events. `type` may end with a star."""
    if "type" in params and "types" in params:
        raise InvalidRequestError("You may only specify one of these parameters: type, types.", param="types")
    types = params.get("types", [params["type"]] if "type" in params else [])
    if len(types) > MAX_TYPES:
        raise InvalidRequestError(f"You may only specify up to {MAX_TYPES} types.", param="types")
    oldest = work.now - KEPT_S

    def wanted(event: Json) -> bool:
        return (
            event["created"] >= oldest
            and (not types or any(fits(event["type"], each) for each in types))
            and ("delivery_success" not in params or _delivered(event) == params["delivery_success"])
        )

    return page(work, "/v1/events", params, work.newest("event"), "event", keep=wanted)


def fits(event_type: str, wanted: str) -> bool:
    """Whether a type is the one wanted, or begins as it does where that ends with a star."""
    return event_type == wanted or (wanted.endswith("*") and event_type.startswith(wanted[:-1]))


def _delivered(event: Json) -> bool:
    return event["pending_webhooks"] == 0 and not event[PRIVATE]["given_up"]
