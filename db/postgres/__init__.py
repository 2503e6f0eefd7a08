"""How Postgres is spoken to, and nothing of what about."""
