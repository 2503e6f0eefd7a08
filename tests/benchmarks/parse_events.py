# ruff: noqa: T201 - a table on the terminal is the point
"""How long an event takes to parse, next to a pydantic model that does the same: `python -m tests.benchmarks.parse_events`.

Each figure is the best of several rounds, and the rounds of the contenders alternate, so that a busy machine slows
all of them alike. "pydantic model" is the bare validation, which does less: it knows no clock and keeps no metadata
text. "model to the same event" goes on from there to what `parse_event` returns.
"""

import json
import timeit
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from metering.rules.events import CallEvent, parse_event

ROUNDS = 15
CALLS_PER_ROUND = 10_000
NOW = datetime(2026, 4, 20, 18, 30, tzinfo=UTC)
EVENT = (
    b'{"call_id":987654321,"org_id":42,"tier":"bolt","direction":"outbound","duration_seconds":75,'
    b'"ended_at":"2026-04-20T18:25:06.201Z","phone_number_id":201,"phone_number_value":"+15551234567","metadata":{}}'
)
EVENTS = {
    "the contract's example": EVENT,
    "with metadata": EVENT.replace(b"{}", b'{"campaign":"spring","agent":17,"tags":["a","b"]}'),
    "with decimals in the duration": EVENT.replace(b":75,", b":75.25,"),
    "with an offset of hours": EVENT.replace(b'Z"', b'+02:00"'),
    "with an escape in the metadata": EVENT.replace(b"{}", rb'{"city":"K\u00f6ln"}'),
}


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL")
    return text


_Id = Annotated[int, Field(ge=1, le=2**63 - 1)]


class Model(BaseModel):
    """The contract's rules in pydantic, strict as they are."""

    model_config = ConfigDict(strict=True)

    call_id: _Id
    org_id: _Id
    tier: Annotated[str, Field(max_length=200), AfterValidator(_no_nul)]
    direction: Literal["inbound", "outbound"]
    duration_seconds: Annotated[Decimal, Field(ge=0, le=604_800, decimal_places=6, allow_inf_nan=False)]
    ended_at: AwareDatetime
    phone_number_id: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    phone_number_value: Annotated[str, Field(max_length=64), AfterValidator(_no_nul)] | None = None
    metadata: dict[str, Any] | None = None


_ADAPTER = TypeAdapter(Model)


def pydantic_event(raw: bytes) -> CallEvent | None:
    """The event that `parse_event` makes, by way of the model; it can't keep the metadata's text as it came."""
    try:
        model = _ADAPTER.validate_json(raw)
    except ValidationError:
        return None
    metadata = json.dumps(model.metadata, separators=(",", ":")) if model.metadata else "{}"
    ended_at = model.ended_at.astimezone(UTC)
    if ended_at - NOW > timedelta(minutes=5) or len(metadata) > 4096 or r"\u0000" in metadata:
        return None
    return CallEvent(
        model.call_id,
        model.org_id,
        model.tier,
        model.direction,
        int(model.duration_seconds * 1_000_000),
        ended_at,
        model.phone_number_id,
        model.phone_number_value,
        metadata,
    )


def best_times_us(contenders: list[Callable[[], object]]) -> list[float]:
    best = [float("inf")] * len(contenders)
    for _ in range(ROUNDS):
        for index, contender in enumerate(contenders):
            best[index] = min(best[index], timeit.timeit(contender, number=CALLS_PER_ROUND))
    return [seconds / CALLS_PER_ROUND * 1e6 for seconds in best]


def main() -> None:
    """Print microseconds per event, and how many times as long pydantic takes."""
    print(f"{'us per event':32}{'parse_event':>12}{'pydantic model':>22}{'model to the same event':>28}")
    for name, raw in EVENTS.items():
        ours = parse_event(raw)
        if not isinstance(ours, CallEvent) or ours != pydantic_event(raw):
            raise AssertionError(f"{name}: the contenders do not agree")
        event_us, model_us, whole_us = best_times_us(
            [
                partial(parse_event, raw),
                partial(_ADAPTER.validate_json, raw),
                partial(pydantic_event, raw),
            ]
        )
        model, whole = (
            f"{model_us:.2f} (x{model_us / event_us:.1f})",
            f"{whole_us:.2f} (x{whole_us / event_us:.1f})",
        )
        print(f"{name:32}{event_us:>12.2f}{model:>22}{whole:>28}")


if __name__ == "__main__":
    main()
