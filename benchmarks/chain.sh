#!/usr/bin/env bash
# The whole chain on real images: search, confirm, final test, export, verify, transfer to stl5, report.
#
# Run: HPSEARCH_DATA=FOLDER benchmarks/chain.sh lenet    FOLDER holds cifar-100-python/ and stl5/ (or stl10_binary/)
#
# Every step goes on where the last call left off, so it may be interrupted and called again as often as needed.
# TRIALS, EPOCHS, MIN_EPOCHS (the first rung), TOP, SEEDS, TRANSFER_SEEDS and TRANSFER_EPOCHS change the budget, LANES how
# many trials train at once in each of the two workers; STOP_AFTER=search or confirm ends it there.
set -euo pipefail
study=$1
hpsearch=${HPSEARCH:-hpsearch}
home=${HPSEARCH_HOME:-storage}
export=$home/exports/$study

$hpsearch create-study "$study" --if-missing --set "budget.trials=${TRIALS:-16}" --set "training.epochs=${EPOCHS:-10}" \
    --set "pruner.min_epochs=${MIN_EPOCHS:-2}"
$hpsearch worker "$study" --device cpu --workers 2 --lanes "${LANES:-auto}"
if [ "${STOP_AFTER:-}" = search ]; then exit; fi

$hpsearch list --json | grep -q "\"$study-confirm\"" || $hpsearch confirm "$study" --top "${TOP:-2}" --seeds "${SEEDS:-5}"
$hpsearch worker "$study-confirm" --device cpu --workers 2 --lanes "${LANES:-auto}"
$hpsearch confirm "$study"
if [ "${STOP_AFTER:-}" = confirm ]; then exit; fi

$hpsearch final-test "$study" --show 2>/dev/null || $hpsearch final-test "$study"
[ -d "$export" ] || $hpsearch export "$study" -o "$export"
$hpsearch verify "$export"

transfer() {
    $hpsearch transfer "$export" --data stl5 --image-size 32 --image-size 96 --seeds "${TRANSFER_SEEDS:-5}" \
        --epochs "${TRANSFER_EPOCHS:-20}"
}
transfer
model=$(python3 -c "import json, sys; print(json.load(open(sys.argv[1]))['model']['name'])" "$export/metrics.json")
for size in 32 96; do
    $hpsearch worker "$model-to-stl5-$size" --device cpu --workers 2 --lanes "${LANES:-auto}"
    $hpsearch final-test "$model-to-stl5-$size" --show 2>/dev/null || $hpsearch final-test "$model-to-stl5-$size"
done
transfer
$hpsearch report "$study" "$study-confirm" "$model-to-stl5-32" "$model-to-stl5-96" -o "$home/$study.html"
