"""Simulated customers: who they are, and what they do with the API and their cards."""
