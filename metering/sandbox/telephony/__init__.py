"""Simulated telephony: calls, the switch that asks the gate, and what it heard of signals."""
