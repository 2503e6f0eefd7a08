#!/bin/sh
# Whether Postgres is set up and answers. While the image sets it up, a server that isn't the final one answers on the socket, so
# TCP is asked first; and one whose setting up was cut short has no owner of the tables, and is not well.
set -eu
pg_isready --quiet --host 127.0.0.1 --timeout 5 || { echo 'Postgres does not answer.'; exit 1; }
owner=$(psql --no-psqlrc --no-align --tuples-only --username postgres --dbname metering \
    --command 'SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()') || exit 1
[ "$owner" = metering_owner ] || {
    echo 'The database was not set up to its end: see docs/how-to/operations.md, "Postgres stays unhealthy".'
    exit 1
}
