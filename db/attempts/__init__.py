"""Charges as rows: attempts, the reload rule asked under the lock, the outbox of signals."""
