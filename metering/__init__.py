"""Prepaid call metering."""

__version__ = "0.1.0"
"""It stands here: the package, the command and the API read it, and the image's label is held against it by a test."""
