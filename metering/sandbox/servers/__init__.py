"""The embedded Postgres and Valkey: their life cycle on this machine."""
