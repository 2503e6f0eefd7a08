"""Pages of a list: newest first, with cursors that are ids."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile
from typing import Final

from metering.sandbox.stripe.errors import InvalidRequestError, no_such
from metering.sandbox.stripe.store import Work
from metering.sandbox.stripe.values import Json, page_of, shown

DEFAULT_LIMIT: Final = 10


def page(
    work: Work,
    url: str,
    params: Json,
    newest: Iterable[Json],
    kind: str,
    *,
    keep: Callable[[Json], bool] = lambda _: True,
) -> Json:
    """One page of `newest`, the objects newest first: those that `keep` and the parameter `created` let through.

    Cursors are places in that order, whether or not their object is in the list. Raises StripeError for one that names nothing.
    """
    limit = params.get("limit", DEFAULT_LIMIT)
    created = params.get("created", {})
    after, before = params.get("starting_after"), params.get("ending_before")
    if after and before:
        raise InvalidRequestError(
            "You cannot parameterize both starting_after and ending_before.", param="ending_before"
        )
    for param, cursor in (("starting_after", after), ("ending_before", before)):
        if cursor and work.get(cursor, kind) is None:
            raise no_such(kind, cursor, param)
    fitting: Iterator[Json] = (each for each in newest if _in_range(each, created) and keep(each))
    if after:
        fitting = _after(fitting, work, after)
    if before:  # the page that ends just before the cursor
        until = list(takewhile(lambda each: work.is_newer(each["id"], before), fitting))
        chosen, has_more = until[-limit:], len(until) > limit
    else:
        taken = list(islice(fitting, limit + 1))
        chosen, has_more = taken[:limit], len(taken) > limit
    return page_of(url, [shown(each) for each in chosen], has_more=has_more)


def _after(fitting: Iterable[Json], work: Work, cursor: str) -> Iterator[Json]:
    return (each for each in fitting if work.is_newer(cursor, each["id"]))


def _in_range(value: Json, created: dict[str, int]) -> bool:
    at: int = value["created"]
    return (
        at > created.get("gt", -1)
        and at >= created.get("gte", at)
        and at < created.get("lt", at + 1)
        and at <= created.get("lte", at)
    )
