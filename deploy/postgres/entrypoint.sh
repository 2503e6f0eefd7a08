#!/bin/sh
# The image's own entrypoint, which wants the superuser's password when the volume is new.
set -eu
POSTGRES_PASSWORD=$(cat /run/secrets/superuser_password)
export POSTGRES_PASSWORD
exec docker-entrypoint.sh "$@"
