"""Reconciliations of all gates: to have them written, and to see how long one takes when all are right."""

import redis
from sqlalchemy import Engine

from metering.runtime.clock import system_clock
from metering.signals.gates import Gates
from workers.gate_reconciler import GateReconciler


def write_gates(engine: Engine, client: redis.Redis) -> None:
    """Write the gates of all orgs, as the jobs do when there are new ones."""
    GateReconciler(engine, Gates(client), clock=system_clock).reconcile()


def measure_reconciliation(engine: Engine, client: redis.Redis) -> tuple[float, int]:
    """Seconds, and how many gates there were."""
    write_gates(engine, client)
    reconciled = GateReconciler(engine, Gates(client), clock=system_clock).reconcile()
    return reconciled.took_s, reconciled.orgs
