#!/usr/bin/env bash
# PgBouncer, Debian's, for the tests of connections that many workers share.
# Run: tests/install.sh     (installs with apt only as root; otherwise it says what to install)
set -euo pipefail

if ! PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer > /dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "tests behind a pooler need: pgbouncer; install it, as with apt-get install pgbouncer" >&2
        exit 1
    fi
    echo "installing pgbouncer for the tests behind a pooler"
    apt-get update -qq
    # Its package starts a service where there is systemd; the tests start their own.
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends pgbouncer > /dev/null
fi
