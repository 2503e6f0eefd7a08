"""What payments tell Prometheus (docs/reference/metrics.md). Base units, and no org ever as a label."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from db.attempts.attempts import Attempt
from db.attempts.reload_rule import Reloads
from db.payments.settlement_outcome import NOT_BOOKED, Settled
from metering.rules.payments import AttemptKind, AttemptStatus, Missing
from metering.rules.reloads import SIGNALLED_SKIP_REASONS
from metering.rules.stripe_codes import COMMON_CODES, known_code
from metering.runtime.role_metrics import UNKNOWN

STRIPE_REQUEST_SECONDS: Final = Histogram(
    "metering_stripe_request_seconds",
    "Latency of requests to Stripe, by operation and outcome.",
    ["operation", "outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
RELOAD_ATTEMPTS: Final = Counter(
    "metering_auto_reload_attempts", "Auto-reload charges that ended, by outcome.", ["outcome"]
)
RELOADS_SKIPPED: Final = Counter(
    "metering_auto_reload_skipped",
    "Orgs whose due auto-reload began to be skipped, by reason.",
    ["reason"],
)
TOP_UPS: Final = Counter("metering_top_up_attempts", "Top-up charges that ended, by outcome.", ["outcome"])
DECLINES: Final = Counter(
    "metering_declines",
    "Charges whose card was declined, by kind and Stripe's code; codes that aren't known here are `other`.",
    ["kind", "code"],
)
STRIPE_EVENTS: Final = Counter(
    "metering_stripe_events",
    "Stripe's events handled, by source (webhook, or the event list: no webhook had brought it) and outcome.",
    ["source", "outcome"],
)
EVENT_LIST_AGE_SECONDS: Final = Gauge(
    "metering_stripe_event_list_age_seconds",
    "Since Stripe's event list was last read to its end, by any process: until then a lost webhook is not noticed.",
)
EVENT_LIST_AGE_SECONDS.set(UNKNOWN)
LONGEST_OPEN_ATTEMPT_SECONDS: Final = Gauge(
    "metering_longest_open_attempt_seconds",
    "Since the charge that is open longest was made or last sent, whichever is later; 0 where none is open.",
)
LONGEST_OPEN_ATTEMPT_SECONDS.set(UNKNOWN)
NOT_BOOKED_TOTAL: Final = Counter(
    "metering_stripe_not_booked",
    "Payments, refunds and disputes at Stripe that were not booked in the ledger, by reason.",
    ["reason"],
)
METADATA_DIFFERS: Final = Counter(
    "metering_stripe_metadata_differs",
    "Times that a payment's metadata at Stripe named another org or attempt than its own. Nothing follows them.",
)

MISSING_AT_STRIPE: Final = Counter(
    "metering_stripe_missing",
    "Customers and payment methods that Stripe no longer had, and that were replaced or dropped here.",
    ["object"],
)

for _kind in AttemptKind:
    for _code in COMMON_CODES:  # there from the start, so that a rate over its first rise is right
        DECLINES.labels(_kind.value, _code)
for _missing in Missing:
    MISSING_AT_STRIPE.labels(_missing.value)
for _status in (AttemptStatus.SUCCEEDED, AttemptStatus.FAILED, AttemptStatus.CANCELLED):
    RELOAD_ATTEMPTS.labels(_status.value)
    TOP_UPS.labels(_status.value)
for _reason in SIGNALLED_SKIP_REASONS:
    RELOADS_SKIPPED.labels(_reason.value)
for _outcome in NOT_BOOKED:
    NOT_BOOKED_TOTAL.labels(_outcome.value)


def count_settled(settled: Settled) -> None:
    """Count what settling came to."""
    if settled.outcome in NOT_BOOKED:
        NOT_BOOKED_TOTAL.labels(settled.outcome.value).inc()
    METADATA_DIFFERS.inc(settled.metadata_differ)
    if settled.declined is not None and settled.attempt is not None:
        DECLINES.labels(settled.attempt.kind.value, known_code(settled.declined)).inc()
    if settled.ended and settled.attempt is not None:
        count_ended(settled.attempt)


def count_ended(attempt: Attempt) -> None:
    """Count an attempt that has just ended."""
    counter = RELOAD_ATTEMPTS if attempt.kind is AttemptKind.AUTO_RELOAD else TOP_UPS
    counter.labels(attempt.status.value).inc()


def count_reloads(reloads: Reloads) -> None:
    """Count orgs that began to wait for a reload, and attempts that a change has cancelled."""
    RELOAD_ATTEMPTS.labels(AttemptStatus.CANCELLED.value).inc(reloads.cancelled)
    for reason in reloads.skipped:
        RELOADS_SKIPPED.labels(reason.value).inc()
