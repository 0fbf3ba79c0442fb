#!/usr/bin/env bash
# Starts a cluster in .neon, runs SQL on it, branches it, and shows that branch and parent part ways.
# Run again, it goes on with the cluster that is there, on a new branch.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${NEON_BIN:-target/release}
export NEON_REPO_DIR=${NEON_REPO_DIR:-.neon}
psql=/usr/lib/postgresql/15/bin/psql

neon() {
    echo "\$ neon_local $*"
    "$bin/neon_local" "$@"
}

# Port of the endpoint $1.
port_of() {
    "$bin/neon_local" endpoint list | awk -v node="$1" '$1 == node { sub(".*:", "", $2); print $2 }'
}

status_of() {
    "$bin/neon_local" endpoint list | awk -v node="$1" '$1 == node { print $6 }'
}

# Runs the statement $2 on the endpoint $1.
sql() {
    echo "$1=> $2"
    "$psql" -Xq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port_of "$1")" -U cloud_admin postgres -c "$2"
}

if [ ! -e "$NEON_REPO_DIR/config" ]; then
    neon init --config scripts/quickstart.toml
fi
neon start
if [ -z "$("$bin/neon_local" tenant list)" ]; then
    neon tenant create --set-default
fi
if [ "$(status_of main)" != running ]; then
    neon endpoint start main
fi

sql main "CREATE TABLE IF NOT EXISTS fruit (name text, at timestamptz DEFAULT now())"
sql main "INSERT INTO fruit VALUES ('apple'), ('pear')"

number=1
while "$bin/neon_local" timeline list | grep -q " branch_$number \["; do number=$((number + 1)); done
branch=branch_$number
neon timeline branch --branch-name "$branch"
neon endpoint start "$branch" --branch-name "$branch"
sql "$branch" "INSERT INTO fruit VALUES ('on $branch only')"
sql main "INSERT INTO fruit VALUES ('on main only')"
sql main "SELECT name, count(*) FROM fruit GROUP BY 1 ORDER BY 1"
sql "$branch" "SELECT name, count(*) FROM fruit GROUP BY 1 ORDER BY 1"

# The demonstration checks itself: each side must have its own row and lack the other's.
seen() {
    "$psql" -XqAt -h 127.0.0.1 -p "$(port_of "$1")" -U cloud_admin postgres \
        -c "SELECT count(*) FROM fruit WHERE name = '$2'"
}
[ "$(seen "$branch" "on $branch only")" = 1 ] || { echo "$branch lost its row" >&2; exit 1; }
[ "$(seen main "on $branch only")" = 0 ] || { echo "main has the row of $branch" >&2; exit 1; }

neon timeline list
neon endpoint list
cat <<END

It runs. Connect with:

    psql -h 127.0.0.1 -p $(port_of main) -U cloud_admin postgres          # branch main
    psql -h 127.0.0.1 -p $(port_of "$branch") -U cloud_admin postgres          # branch $branch

Go on with:

    $bin/neon_local timeline branch --branch-name mine
    $bin/neon_local endpoint start mine --branch-name mine
    $bin/neon_local stop
END
