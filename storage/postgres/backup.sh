#!/usr/bin/env bash
# A verified backup of a PostgreSQL storage and of the files that belong to it, while workers run.
#
#     PGHOST=host PGUSER=hpsearch PGDATABASE=hpsearch storage/postgres/backup.sh /backups
#
# makes /backups/hpsearch-20261126T120000Z with
#
#     checkpoints.tar   of trials that have not ended, if they are in a folder
#     database.dump     pg_dump's custom format
#     rows              how many rows each table had at that moment
#     files.tar         weights, pictures and exports of the home folder
#     shared.tar        weights and pictures beside the checkpoints, if HPSEARCH_ARTIFACTS is a folder
#     SHA256SUMS        of all of these
#
# and deletes all but the last KEEP (7). The folder has its name only when everything in it has been verified.
#
# The password comes from ~/.pgpass, from PGPASSFILE, or from the file that PGPASSWORD_FILE names (a secret of a
# container); never from an argument. HPSEARCH_HOME and HPSEARCH_ARTIFACTS are those of the workers. What is in S3 is
# not part of a backup: let the bucket keep its versions.
#
# Why this order. A checkpoint that is newer than what the database says of its trial is passed over, so checkpoints
# come first: every one of them can be used, and all that is lost is the time until the database is read. Of weights,
# pictures and exports the database must not promise what the archive lacks, so they come last.
set -euo pipefail
# shellcheck source=storage/postgres/common.sh
. "$(dirname "$0")/common.sh"

[ $# -eq 1 ] || refuse "usage: PGHOST=… PGUSER=… PGDATABASE=… $0 FOLDER"
KEEP=${KEEP:-7}
[[ $KEEP =~ ^[1-9][0-9]*$ ]] || refuse "KEEP=$KEEP: must be a number of backups, 1 or more"
[ -d "$1" ] || refuse "$1: there is no such folder; make it first, so that a disk that is not mounted is noticed"
needs pg_dump pg_restore psql tar sha256sum
is_there() { [ -d "$2" ] || refuse "$1=$2: there is no such folder; name that of the workers"; }
is_there HPSEARCH_HOME "$(home_folder)"
case ${HPSEARCH_ARTIFACTS:-} in '' | *://*) ;; *) is_there HPSEARCH_ARTIFACTS "$HPSEARCH_ARTIFACTS" ;; esac

clean_up() {
    rm -rf "${work:-}"
    forget_password
    if [ -n "${SNAPSHOT_PID:-}" ]; then kill "$SNAPSHOT_PID" 2>/dev/null || true; fi
}
trap clean_up EXIT
trap '' PIPE # if psql is gone, writing to it fails and is told
use_password_file

folder=$(cd "$1" && pwd)
name=hpsearch-$(date -u +%Y%m%dT%H%M%SZ)
while [ -e "$folder/$name" ]; do # one of this second
    sleep 0.2
    name=hpsearch-$(date -u +%Y%m%dT%H%M%SZ)
done
work=$(mktemp -d "$folder/.$name.XXXXXX")

# Archive what is there of some folders below another one, while workers write and delete files: a file is written
# under a name that ends in .part and then renamed, so that none is archived half. tar's exit code 1 says that files
# changed or vanished while it read, which they may.
archive() {
    local into=$1 place=$2 code=0
    shift 2
    local found=()
    for part in "$@"; do
        if [ -e "$place/$part" ]; then found+=("$part"); fi
    done
    if [ ${#found[@]} -eq 0 ]; then return; fi
    tar --create --file "$into" --directory "$place" --exclude '*.part' "${leave_out[@]}" \
        --warning=no-file-changed --warning=no-file-removed -- "${found[@]}" || code=$?
    [ "$code" -le 1 ] || fail "tar could not archive $place (exit code $code)"
    tar --list --file "$into" >/dev/null || fail "$into cannot be read back"
}

checkpoints=$(checkpoints_folder)
leave_out=(--exclude ./weights --exclude ./pictures) # of a folder that is shared; they come later
if [ -n "$checkpoints" ]; then archive "$work/checkpoints.tar" "$checkpoints" .; fi

# One transaction in psql holds the snapshot that pg_dump reads, so that the rows can be counted as of the same moment.
# If psql fails, what was meant for it is read all the same: bash forgets a coprocess that has ended, in the midst of this.
coproc SNAPSHOT {
    psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 || true
    exec >&-
    cat >/dev/null
}
exec {ask}>&"${SNAPSHOT[1]}" {answer}<&"${SNAPSHOT[0]}"
echo 'SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;' >&"$ask"
echo 'SELECT pg_export_snapshot();' >&"$ask"
read -r snapshot <&"$answer" || fail "the database did not answer; see above"
pg_dump --format=custom --no-owner --no-privileges --snapshot="$snapshot" --file="$work/database.dump"
echo "$COUNT_ROWS" >&"$ask"
echo "SELECT 'end';" >&"$ask"
while read -r line <&"$answer" && [ "$line" != end ]; do echo "$line"; done | sort >"$work/rows"
exec {ask}>&- {answer}<&-

# The dump is read to its end, as a restore would read it, and its rows are counted.
pg_restore --data-only --file=- "$work/database.dump" | count_dumped | sort >"$work/dumped"
[ -s "$work/rows" ] || fail "the database has no tables: is PGDATABASE the right one?"
diff "$work/rows" "$work/dumped" >&2 || fail "the dump does not hold the rows of the database (< database, > dump)"
rm "$work/dumped"

leave_out=()
archive "$work/files.tar" "$(home_folder)" weights artifacts exports
if [ -n "$checkpoints" ] && [ -n "${HPSEARCH_ARTIFACTS:-}" ]; then archive "$work/shared.tar" "$checkpoints" weights pictures; fi

(cd "$work" && sha256sum -- * >"$work/.sums" && mv .sums SHA256SUMS && sha256sum --check --quiet SHA256SUMS)
sync -f "$work"
mv --no-target-directory "$work" "$folder/$name"

# The names sort by time.
mapfile -t backups < <(find "$folder" -maxdepth 1 -type d -name 'hpsearch-[0-9]*T[0-9]*Z' | sort)
for old in "${backups[@]:0:$((${#backups[@]} > KEEP ? ${#backups[@]} - KEEP : 0))}"; do
    rm -rf "$old"
done

archives=$(cd "$folder/$name" && find . -name '*.tar' -printf ', %f' | sort)
echo "$folder/$name: $(awk '{n += $2} END {print n}' "$folder/$name/rows") rows${archives:-, no files}: verified"
