"""Which calls a meter has seen the events of: their holds end, or lapse (docs/reference/holds.md#the-event)."""

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from db.ledger.post_calls import Posted
from metering.rules.events import CallEvent
from metering.signals.gates import CallsByOrg
from workers.batch import ParsedEntry


class _Named(msgspec.Struct):
    """What a rejected event must tell to be known as a call's."""

    org_id: int
    call_id: int


class SeenCalls:
    """The calls of committed batches whose gates haven't followed yet. Told anew each time: nobody pays who has no holds."""

    def __init__(self) -> None:
        self._batches: list[tuple[Sequence[ParsedEntry], Posted]] = []

    def add(self, parsed: Sequence[ParsedEntry], posted: Posted) -> None:
        """Add a batch, and what became of it."""
        self._batches.append((parsed, posted))

    def clear(self) -> None:
        """Forget them all."""
        self._batches.clear()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def ended(self) -> CallsByOrg:
        """Calls that were billed, now or before, or cost nothing."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for parsed, posted in self._batches:
            others = {each.stream_id for each in posted.rejected} | {
                each.stream_id for each in posted.deferred
            }
            for entry in parsed:
                event = entry.event
                if type(event) is CallEvent and entry.stream_id not in others:
                    found[event.org_id].append(event.call_id)
        return found

    def not_billed(self) -> CallsByOrg:
        """Calls whose events were rejected, as far as these name them."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for _, posted in self._batches:
            for rejected in posted.rejected:
                try:
                    named = msgspec.json.decode(rejected.raw, type=_Named)
                except (
                    msgspec.DecodeError,
                    UnicodeDecodeError,
                    RecursionError,
                ):  # brackets may nest without end
                    continue
                if named.org_id > 0 and named.call_id > 0:
                    found[named.org_id].append(named.call_id)
        return found
