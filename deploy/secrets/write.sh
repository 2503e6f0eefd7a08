#!/bin/sh
# Writes what each service may know into a directory that no other one sees, a line in each file. The service `secrets` of
# docker-compose.yml runs it: Compose gives it all of .env's secrets in one file, and each directory is a volume of one service.
# A service whose root is read only can't be given them by Compose itself, and in variables `docker inspect` would show them.
set -eu
from=${SECRETS_FROM:-/run/secrets/all}
to=${SECRETS_TO:-/secrets}
postgres=${POSTGRES_ADDRESS:-postgres:5432}
valkey=${VALKEY_ADDRESS:-valkey:6379}

[ -r "$from" ] || { echo "$from can't be read" >&2; exit 1; }

secret() { # NAME
    sed -n "s/^$1=//p" "$from"
}

write() { # SERVICE NAME VALUE: at once as a whole; by other users to be read, each in its own container
    printf '%s\n' "$3" > "$to/$1/.new"
    chmod 444 "$to/$1/.new"
    mv -f "$to/$1/.new" "$to/$1/$2"
}

for name in superuser owner app meter api jobs; do
    write postgres "${name}_password" "$(secret "${name}_password")"
done
for name in valkey telephony meter api jobs; do
    write valkey "${name}_password" "$(secret "${name}_password")"
done

write migrate database_url "postgresql://metering_owner:$(secret owner_password)@$postgres/metering"
write operator database_url "postgresql://metering_app:$(secret app_password)@$postgres/metering"
write operator redis_url "redis://:$(secret valkey_password)@$valkey/0"
for role in meter jobs api; do
    password=$(secret "${role}_password")
    write "$role" database_url "postgresql://metering_$role:$password@$postgres/metering"
    write "$role" redis_url "redis://$role:$password@$valkey/0"
done
for service in operator jobs api; do
    write "$service" stripe_api_key "$(secret stripe_api_key)"
    write "$service" stripe_webhook_secret "$(secret stripe_webhook_secret)"
done
write api telephony_token "$(secret telephony_token)"
write api operator_token "$(secret operator_token)"
