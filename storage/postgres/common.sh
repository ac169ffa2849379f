# shellcheck shell=bash
# What backup.sh and restore.sh share.

export LC_ALL=C  # sort and join agree

# What was given cannot be used, and nothing was changed.
refuse() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# It was tried, and failed.
fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

needs() {
    [ -n "${PGDATABASE:-}" ] || refuse "PGDATABASE is not set: name the database with it, and the server with PGHOST"
    for tool in "$@"; do
        command -v "$tool" >/dev/null || refuse "$tool is not installed; PostgreSQL's tools must be as new as the server"
    done
}

# Lets libpq take the password from PGPASSWORD_FILE, if that is set: by a file, for lists of processes show the rest.
use_password_file() {
    if [ -z "${PGPASSWORD_FILE:-}" ]; then return; fi
    [ -r "$PGPASSWORD_FILE" ] || refuse "PGPASSWORD_FILE=$PGPASSWORD_FILE: there is no such file, or it cannot be read"
    made_passfile=$(umask 077 && mktemp)
    export PGPASSFILE=$made_passfile
    sed -e 's/[\\:]/\\&/g' -e 's/^/*:*:*:*:/' -e 1q "$PGPASSWORD_FILE" >"$PGPASSFILE"
}

forget_password() { rm -f "${made_passfile:-}"; }

home_folder() { echo "${HPSEARCH_HOME:-storage}"; }

# Where checkpoints are; nothing if that is no folder.
checkpoints_folder() {
    case ${HPSEARCH_ARTIFACTS:-} in
    *://*) ;;
    '') echo "$(home_folder)/checkpoints" ;;
    *) echo "$HPSEARCH_ARTIFACTS" ;;
    esac
}

# "schema.table rows", a line for each table. An empty table gives a line too.
# shellcheck disable=SC2034
COUNT_ROWS="SELECT format('SELECT %L || '' '' || count(*) FROM %I.%I', schemaname || '.' || tablename, schemaname, tablename)
    FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1 \\gexec"

# The same of the SQL that pg_restore writes.
count_dumped() {
    awk '!table && /^COPY / { table = $2; gsub(/"/, "", table); n = 0; next }
         table && /^\\\.$/ { print table, n; table = ""; next }
         table { n++ }'
}
