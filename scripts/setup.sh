#!/usr/bin/env bash
# Installs what building, running and testing need. Does nothing where everything is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    build-essential etcd-server libprotobuf-dev libpq-dev openssl pkg-config
    postgresql-15 postgresql-server-dev-15 protobuf-compiler python3-venv
)

# Tests keep objects in a real S3 server, Ceph's gateway with a cluster in memory.
if [ "${1:-}" = --tests ]; then
    packages+=(radosgw ceph-mon ceph-osd ceph-base)
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || {
    echo "cargo is missing: install the stable Rust toolchain (1.95 or newer), see https://rustup.rs" >&2
    exit 1
}

# The tests' Python packages live in a virtual environment, made anew when the list changes.
if [ "${1:-}" = --tests ]; then
    wanted=$(sha256sum test_runner/requirements.txt)
    if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
        python3 -m venv .venv
        .venv/bin/pip install -q -r test_runner/requirements.txt
        echo "$wanted" >.venv/installed
    fi
fi
