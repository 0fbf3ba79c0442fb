#!/usr/bin/env bash
# Fetches the source of PostgreSQL 15 for its test suites and compiles the C functions they load. Prints the folder:
#   source/  unpacked source package (src/test/regress, src/test/isolation, contrib, ...)
#   lib/     regress.so, autoinc.so, refint.so, for pg_regress --dlpath
# The folder is $NEON_PG_TEST_SOURCE or target/pg_test_source. Does nothing where it is complete already. All may read the
# folder itself, but the server's account may have no way to it: a clone under /root has to be copied for it.
#
# The suites' version is the newest with a source package in the distribution's main pool. It can be a minor version or two
# older than the server, whose update comes from the security pool.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(realpath -m "${NEON_PG_TEST_SOURCE:-target/pg_test_source}")
mkdir -p "$(dirname "$folder")"
exec 3>"$folder.lock"
flock 3

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A fresh machine knows packages only in binary form: an entry for sources beside the existing one for bookworm main.
add_source_entry() {
    local known='$(REPO_URI) $(COMPONENT)' address
    if apt-get indextargets --format "$known" 'Codename: bookworm' 'Created-By: Sources' | grep -q ' main$'; then
        return
    fi
    address=$(apt-get indextargets --format "$known" 'Codename: bookworm' 'Created-By: Packages' | sed -n 's/ main$//p' | head -n 1)
    [ -n "$address" ] || { echo "no entry for Debian bookworm main to take the sources from" >&2; return 1; }
    echo "adding an entry for source packages" >&2
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $address bookworm main" |
        as_root tee /etc/apt/sources.list.d/postgresql-source.list >/dev/null
    as_root apt-get update -qq >&2
}

fetch() {
    as_root apt-get update -qq >&2
    add_source_entry
    (cd "$1" && apt-get source -qq --download-only -o APT::Sandbox::User=root postgresql-15/bookworm >&2)
    mkdir "$1/source"
    tar -xf "$1"/postgresql-15_*.orig.tar.* -C "$1/source" --strip-components=1
    rm "$1"/postgresql-15_*
}

compile() {
    local include c_file
    include=$(/usr/lib/postgresql/15/bin/pg_config --includedir-server)
    mkdir "$1/lib"
    for c_file in src/test/regress/regress.c contrib/spi/autoinc.c contrib/spi/refint.c; do
        gcc -shared -fPIC -O1 -w "-I$include" -o "$1/lib/$(basename "$c_file" .c).so" "$1/source/$c_file"
    done
}

if [ ! -d "$folder" ]; then
    part=$(mktemp -d "$folder.part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    fetch "$part"
    compile "$part"
    chmod -R a+rX "$part"
    # The name appears once all is there.
    mv "$part" "$folder"
fi
echo "$folder"
