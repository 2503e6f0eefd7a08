"""Operators, and the log of what they change."""
