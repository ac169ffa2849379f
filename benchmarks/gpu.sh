#!/bin/sh
# What docs/benchmarks.md wants of a GPU, one part after another; what a part prints stays in a file of its own.
#
# Run, in the repository's folder, with the Python that has torch for the GPU:
#     benchmarks/gpu.sh DATA RESULTS [PART ...]      DATA holds cifar-100-python; RESULTS is made
# Parts: tests, throughput (no side begins after $MINUTES, 7), lenet and 2lp (searches of $TRIALS trials), convolutions,
# tf32, precision. Without any: all, in this order.
set -eu
data=$1 results=$2
shift 2
: "${PYTHON:=python3}" "${TRIALS:=1000}" "${LANES:=256}" "${DEVICE:=cuda:0}" "${MINUTES:=7}"

search() {
    "$PYTHON" -m hpsearch create-study "$1" --if-missing --set "budget.trials=$TRIALS" &&
        "$PYTHON" -m hpsearch worker "$1" --device "$DEVICE" --lanes "$LANES" &&
        "$PYTHON" -m hpsearch status "$1" &&
        "$PYTHON" -m hpsearch best "$1"
}

part() {
    case $1 in
    tests) "$PYTHON" -m pytest --noconftest -p no:cacheprovider -W default -q -k "cuda or gpu or waits" \
        tests/test_kernels.py tests/train ;;
    throughput) "$PYTHON" -m benchmarks.throughput --data-dir "$data" --device cuda --minutes "$MINUTES" ;;
    lenet | 2lp | quickstart) search "$1" ;;
    convolutions) "$PYTHON" -m benchmarks.convolutions --device cuda --lanes 16 256 --batch-sizes 64 ;;
    tf32) "$PYTHON" -m benchmarks.convolutions --device cuda --tf32 --lanes 256 --batch-sizes 64 ;;
    precision) "$PYTHON" benchmarks/precision.py --data-dir "$data" --device cuda ;;
    esac
}

parts="tests throughput lenet 2lp convolutions tf32 precision"
for name in "$@"; do
    case " $parts quickstart " in
    *" $name "*) ;;
    *) echo "$0: $name is no part; these are: $parts" >&2 && exit 2 ;;
    esac
done
# shellcheck disable=SC2086 # they are words
[ $# -gt 0 ] || set -- $parts
mkdir -p "$results"
results=$(cd "$results" && pwd)
home=${HPSEARCH_HOME:-$results/home} # data sets, checkpoints, the database; elsewhere if RESULTS is to stay small
mkdir -p "$home"
export HPSEARCH_DATA="$data" HPSEARCH_HOME="$home" HPSEARCH_STORAGE="sqlite:///$home/studies.db"
export PYTHONUNBUFFERED=1 PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}."
for name in "$@"; do
    echo "== $name, $(date -u '+%F %T')"
    started=$(date +%s)
    part "$name" >"$results/$name.txt" 2>&1 || echo "$name ended with $?"
    tail -n 120 "$results/$name.txt"
    echo "== $name took $(($(date +%s) - started)) s"
done
