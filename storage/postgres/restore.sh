#!/usr/bin/env bash
# Restores what backup.sh wrote into an empty database, and the files into folders that are empty or not there.
#
#     PGHOST=host PGUSER=hpsearch PGDATABASE=hpsearch storage/postgres/restore.sh /backups/hpsearch-20261126T120000Z
#
# It refuses anything that is not empty, and changes nothing then. Passwords and folders: as for backup.sh. Afterwards
# `hpsearch fsck STUDY --repair` deletes checkpoints of trials that ended while the backup was made; then start workers.
#
# --database-only before the backup restores no files: a new server, and the files stay where they are.
# HPSEARCH_OWNER=USER:GROUP, as root: whose the home folder is, where the top of a new volume is root's.
set -euo pipefail
# shellcheck source=storage/postgres/common.sh
. "$(dirname "$0")/common.sh"

files=yes
if [ "${1:-}" = --database-only ]; then files=no; shift; fi
[ $# -eq 1 ] || refuse "usage: PGHOST=… PGUSER=… PGDATABASE=… $0 [--database-only] BACKUP"
[ -f "$1/SHA256SUMS" ] || refuse "$1: is no backup, it has no SHA256SUMS"
needs pg_restore psql tar sha256sum

targets=()      # folders that the backup has files for
placed=no       # whether they may be there although the database is not

clean_up() {
    if [ $placed = yes ]; then rm -rf "${targets[@]}"; fi
    forget_password
}
trap clean_up EXIT
use_password_file
backup=$(cd "$1" && pwd)
(cd "$backup" && sha256sum --check --quiet SHA256SUMS >&2) || refuse "$1: is damaged; take another backup"

query() { psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --file=- <<<"$1"; }

objects=$(query "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'") || refuse "the database cannot be reached"
[ "$objects" = 0 ] || refuse "the database $PGDATABASE is not empty: create a new one with createdb, and name it"

has() { [ $files = yes ] && [ -f "$backup/$1.tar" ]; }
is_empty() { [ ! -e "$1" ] || [ -z "$(ls -A "$1")" ]; }

home=$(home_folder)
checkpoints=$(checkpoints_folder)
if has files; then
    while read -r part; do targets+=("$home/$part"); done < <(tar --list --file "$backup/files.tar" | cut -d/ -f1 | sort -u)
fi
if has checkpoints || has shared; then
    [ -n "$checkpoints" ] || refuse "HPSEARCH_ARTIFACTS=$HPSEARCH_ARTIFACTS: the backup has checkpoints; name a folder"
    targets+=("$checkpoints")
fi
for target in "${targets[@]}"; do
    is_empty "$target" || refuse "$target is not empty: move it away, or name another HPSEARCH_HOME"
done

# Files first: a worker that is started early must not find the trials without their checkpoints.
placed=yes
if [ $files = yes ]; then
    mkdir -p "$home"
    if [ -n "${HPSEARCH_OWNER:-}" ]; then chown "$HPSEARCH_OWNER" "$home"; fi
fi
if has files; then
    tar --extract --file "$backup/files.tar" --directory "$home"
fi
for archive in checkpoints shared; do
    if has $archive; then
        mkdir -p "$checkpoints"
        tar --extract --file "$backup/$archive.tar" --directory "$checkpoints"
    fi
done
pg_restore --exit-on-error --single-transaction --no-owner --no-privileges --dbname="$PGDATABASE" \
    "$backup/database.dump" || fail "the database could not be restored; it is empty as before"
placed=no
# A worker that runs already may have added rows; none may be missing.
query "$COUNT_ROWS" | sort | join - "$backup/rows" | awk '$2 < $3 { print; bad = 1 } END { exit bad }' >&2 ||
    fail "tables have fewer rows than the backup (table, rows, rows of the backup)"
query 'ANALYZE'
echo "$backup: restored, $(awk '{n += $2} END {print n}' "$backup/rows") rows"
echo 'next: hpsearch fsck STUDY --repair, for each study; then start workers'
