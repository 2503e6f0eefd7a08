"""Faults under load, and the comparison to the cent at the end."""
