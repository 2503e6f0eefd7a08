"""Taking completed calls into the stream: each judged as a meter will, all pushed, whatever they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from prometheus_client import Counter

from metering.rules.events import EVENT_FIELDS, parse_event
from metering.rules.rejections import Reason, Rejection
from metering.signals.call_stream import append_events

WHOLE_EVENT: Final = "event"
"""What is named where no single field of an event is wrong."""

HTTP_EVENTS: Final = Counter(
    "metering_http_events",
    "Completed calls that came over HTTP, by outcome: pushed, pushed though they can't be billed as they are, or not taken.",
    ["outcome"],
)
"""In all, whatever their number in a request."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the stream did with events."""

    judged: Sequence[Rejection | None]
    """Why each can't be billed as it is; None for one that can."""
    answered: Sequence[Any]
    """Ids (bytes) or the errors that refused them, in the same order; shorter where the connection failed."""
    error: Exception | None = None
    """Why the connection failed."""

    @property
    def refusal(self) -> Exception | None:
        """Why not all of them are in the stream; None where they are."""
        return next((each for each in self.answered if isinstance(each, Exception)), self.error)

    @property
    def surely(self) -> int:
        """How many, counted from the first, are surely in the stream."""
        refused = (index for index, each in enumerate(self.answered) if isinstance(each, Exception))
        return next(refused, len(self.answered))

    @property
    def invalid(self) -> int:
        """How many can't be billed as they are."""
        return sum(each is not None for each in self.judged)


def take_events(stream: redis.Redis, raws: Sequence[bytes]) -> Taken:
    """Push them all: what can't be billed as it is is kept, not lost. Never raises for what Redis does."""
    judged = [found if isinstance(found := parse_event(raw), Rejection) else None for raw in raws]
    try:
        taken = Taken(judged, append_events(stream, raws) if raws else [])
    except redis.RedisError as error:
        taken = Taken(judged, [], error)
    if taken.refusal is None:
        HTTP_EVENTS.labels("invalid").inc(taken.invalid)
        HTTP_EVENTS.labels("accepted").inc(len(judged) - taken.invalid)
    else:
        HTTP_EVENTS.labels("not_taken").inc(len(judged) - taken.surely)
    return taken


def explain(rejection: Rejection) -> tuple[str, str]:
    """The field that is wrong, and what is wrong with it."""
    name, _, rest = rejection.detail.partition(" ")
    if rejection.reason is Reason.INVALID_FIELD and name in EVENT_FIELDS:
        return name, rest
    message = {
        Reason.MALFORMED_JSON: f"must be a JSON object: {rejection.detail}",
        Reason.TOO_LARGE: f"is too large: {rejection.detail}",
    }.get(rejection.reason, rejection.detail)
    return WHOLE_EVENT, message
