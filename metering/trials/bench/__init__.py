"""Measurements that anyone can repeat: their fixture, loads and reports."""
