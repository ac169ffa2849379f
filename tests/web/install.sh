#!/usr/bin/env bash
# A browser for the tests of the dashboard: Debian's Chromium with its driver, and axe-core from npm into .venv/axe.
# Run: make browser     (installs with apt only as root; otherwise it says what to install)
set -euo pipefail
cd "$(dirname "$0")/../.."
AXE=axe-core@4.14.1

missing=()
for command in chromium chromedriver npm; do
    command -v "$command" > /dev/null || missing+=("${command/chromedriver/chromium-driver}")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "tests of the dashboard in a browser need: ${missing[*]}; install them, as with apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]} for the tests of the dashboard"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
fi
if [ ! -f .venv/axe/node_modules/axe-core/axe.min.js ]; then
    npm install --silent --no-audit --no-fund --prefix .venv/axe "$AXE"
fi
