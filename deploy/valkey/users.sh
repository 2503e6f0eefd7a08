#!/bin/sh
# Prints Valkey's ACL file: who may do what. docker-compose.yml runs it when Valkey starts; passwords come from the
# environment or from files, and only their hashes go into the file it prints. A rule that can't be read keeps Valkey from starting.
set -eu

secrets=${SECRETS_DIRECTORY:-/run/secrets}

sha256() { # VARIABLE: of the password in it or, where it is unset, in the file that is called so in small letters
    eval "password=\${$1:-}"
    [ -n "$password" ] || password=$(cat "$secrets/$(printf %s "$1" | tr '[:upper:]' '[:lower:]')") || true
    [ -n "$password" ] || { echo "$1 is missing" >&2; return 1; }
    printf '%s' "$password" | sha256sum | cut -d ' ' -f 1
}

operator=$(sha256 VALKEY_PASSWORD)
telephony=$(sha256 TELEPHONY_PASSWORD)
meter=$(sha256 METER_PASSWORD)
jobs=$(sha256 JOBS_PASSWORD)
api=$(sha256 API_PASSWORD)

# Operators: `valkey-cli` and the product's commands. No role connects as this one.
echo "user default on #$operator ~* &* +@all"

# Telephony pushes calls, asks gates, holds what its calls may cost, and hears signals. It can't read what others pushed, nor change
# a gate. What stands in brackets the functions need, on keys of holds alone: Redis asks each of their commands for this user's right.
echo "user telephony on #$telephony" \
    "%W~calls:completed %R~gate:* %R~balance:signals:log &balance:signals" \
    "+xadd +hget +hmget +wait +waitaof +xread +xrange +xrevrange +xinfo|stream +subscribe +multi +exec +ping +select" \
    "+client|setname +client|setinfo" \
    "(~holds:* %R~gate:* +fcall|call_start +fcall|call_renew +fcall|call_cancel +time +hget +hmget +hset +hsetnx +hdel +hincrby" \
    "+zadd +zrem +zscore +zcount +zrangebyscore +pexpiretime +pexpireat +sadd)"

# The roles, each with the keys that it works on. None may empty, configure, copy or stop the server; the jobs load the functions.
echo "user meter on #$meter" \
    "~calls:completed ~gate:* ~holds:* ~balance:signals:log ~metering:jobs* &balance:signals +@all -@admin -@dangerous -function +info"
echo "user jobs on #$jobs" \
    "%R~calls:completed ~gate:* ~holds:* ~balance:signals:log ~metering:jobs* &balance:signals +@all -@admin -@dangerous -xreadgroup" \
    "-function +function|load +info"
echo "user api on #$api" \
    "~gate:* ~holds:* %W~calls:completed ~balance:signals:log ~metering:jobs* &balance:signals +@all -@admin -@dangerous -function +info"
