"""Prometheus and Grafana: rules, dashboards, and what they say of running roles."""
