"""Telling Prometheus of balances below zero, and what took them there."""

import threading
from typing import Final

from prometheus_client import Gauge
from sqlalchemy import Engine

from db.accounts.overspent import Overspent, OverspentReason, read_overspent
from db.postgres.engine import transaction
from metering.signals.holds import Holds
from workers.periodic import PeriodicTask

PERIOD_S: Final = 30.0

OVERSPENT_ORGS: Final = Gauge(
    "metering_overspent_orgs", "Orgs whose balance is below zero, by what took it there.", ["reason"]
)
OVERSPENT_CENTS: Final = Gauge(
    "metering_overspent_cents",
    "By how many US cents orgs are below zero, by what took them there.",
    ["reason"],
)
TOLD: Final = [reason for reason in OverspentReason if reason is not OverspentReason.CALL_DISMISSED]
"""The jobs may not read the operators' log: a dismissed call is one beyond its hold to them."""


def overspent_task(engine: Engine, holds: Holds) -> PeriodicTask:
    """Goes round in every jobs process."""

    def tell(_: threading.Event) -> None:
        holding = {org_id for page in holds.org_ids() for org_id in page}
        with transaction(engine) as connection:
            found = read_overspent(connection, holding)
        for reason in TOLD:
            overspent = found.reasons.get(reason, Overspent(0, 0))
            OVERSPENT_ORGS.labels(reason.value).set(overspent.orgs)
            OVERSPENT_CENTS.labels(reason.value).set(overspent.cents)

    return PeriodicTask("overspent", tell, PERIOD_S)
