#!/usr/bin/env bash
# For tests of what stands around hpsearch: PgBouncer, docker-compose, Caddy, network namespaces; from Debian.
# Run: tests/install.sh     (installs with apt only as root; otherwise it says what to install)
set -euo pipefail
PATH=$PATH:/usr/sbin:/usr/local/sbin

declare -A packages=([pgbouncer]=pgbouncer [docker-compose]=docker-compose [caddy]=caddy [ip]=iproute2 [iptables]=iptables)
missing=()
for command in "${!packages[@]}"; do
    command -v "$command" >/dev/null || missing+=("${packages[$command]}")
done
if [ ${#missing[@]} -eq 0 ]; then exit; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "some tests need: ${missing[*]}; install them, as with apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "installing ${missing[*]} for the tests"
apt-get update -qq
# Their packages start services where there is systemd; the tests start their own.
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
