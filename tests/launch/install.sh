#!/usr/bin/env bash
# Slurm for the tests of `hpsearch launch`: Debian's slurm-wlm and munge, which the tests start themselves.
# Run: make slurm     (installs with apt only as root; otherwise it says what to install)
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

missing=()
command -v munged > /dev/null || missing+=(munge)
for command in slurmctld slurmd sbatch; do
    command -v "$command" > /dev/null || { missing+=(slurm-wlm); break; }
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "tests of workers in Slurm need: ${missing[*]}; install them, as with apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]} for the tests of workers in Slurm"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
fi
