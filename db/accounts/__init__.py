"""Orgs, their API keys and billing settings, and the two reads that answer most requests."""
