# `make quickstart` and `make test` are all a newcomer needs; both install what they need first.

SHELL := /bin/bash
PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
# Installing the extension writes to PostgreSQL's directories.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTEST := .venv/bin/python -m pytest -c test_runner/pytest.ini --rootdir test_runner
WITH_S3 := .venv/bin/python test_runner/fixtures/s3_server.py
PYTEST_WORKERS ?= 3
BINARIES := -p control_plane -p pagectl -p pageserver -p safekeeper -p compute_walproposer

SEEDS ?= 100000
FIRST_SEED ?= 1
# For each fuzz target.
FUZZ_SECONDS ?= 180

.PHONY: bench-load simulate test-simulator test-s3 help setup setup-tests build release extension test-extension quickstart test test-rust test-regress lint nightly bench clean
.PHONY: oracle oracle-all fuzz-tool fuzz-safekeeper fuzz-redo bench-redo nightly-regress setup-garage nightly-garage

help:
	@echo "make quickstart   build, start a cluster, show SQL and a branch"
	@echo "make test         all tests that CI runs"
	@echo "make lint         format, clippy, licences"
	@echo "make nightly      the long tests"
	@echo "make bench        the benchmarks"
	@echo "make oracle       WAL redo compared with PostgreSQL over its regression suite; oracle-all: all suites and settings"
	@echo "make bench-redo   WAL redo beside PostgreSQL's"
	@echo "make simulate     the consensus protocol under faults: SEEDS=n FIRST_SEED=k"

setup:
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh --tests

build: setup
	cargo build $(BINARIES) --features pageserver/testing,safekeeper/testing

release: setup
	cargo build --release $(BINARIES)

extension: setup
	$(MAKE) -s -C compute/neon PG_CONFIG=$(PG_CONFIG)
	$(SUDO) $(MAKE) -s -C compute/neon PG_CONFIG=$(PG_CONFIG) install

test-extension: setup
	$(MAKE) -s -C compute/neon_test_utils PG_CONFIG=$(PG_CONFIG)
	$(SUDO) $(MAKE) -s -C compute/neon_test_utils PG_CONFIG=$(PG_CONFIG) install

quickstart: release extension
	scripts/quickstart.sh

simulate: setup
	cargo run -p simulator --bin simulate -- --seeds $(SEEDS) --first-seed $(FIRST_SEED)

test: test-rust test-simulator test-regress oracle

# The protocol under faults, and the proof that breaking any of its rules would be seen.
test-simulator: setup
	cargo run -q -p simulator --bin simulate -- --seeds 2000
	cargo test -q -p simulator --features mutations --test mutations -- --nocapture

# Tests of object storage find a real S3 server's address in the environment, and fail without one.
test-rust: setup-tests
	@if cargo nextest --version >/dev/null 2>&1; then \
		$(WITH_S3) cargo nextest run --workspace --features remote_storage/s3 --no-fail-fast; \
	else \
		$(WITH_S3) cargo test --workspace --features remote_storage/s3 --no-fail-fast; \
	fi

test-s3: setup-tests
	$(WITH_S3) cargo test -p remote_storage --features s3

test-regress: build extension test-extension setup-tests
	$(PYTEST) test_runner/regress -n $(PYTEST_WORKERS)

# WAL of PostgreSQL's regression suite, replayed beside the server that writes it; every page compared.
ORACLE := libs/wal_redo_check/oracle
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
oracle: setup
	cargo build $(BINARIES) -p wal_redo_check --features pageserver/testing,safekeeper/testing
	source=$$(scripts/pg_test_source.sh) && $(ORACLE)/run.py --pg-test-source "$$source" \
		--checker $(TARGET_DIR)/debug/wal_redo_check --profile no_full_page_writes --workload regress

# All suites and workloads in all settings; every kind of record must have occurred.
oracle-all: setup
	cargo build --release -p wal_redo_check
	source=$$(scripts/pg_test_source.sh) && $(ORACLE)/run.py --pg-test-source "$$source" \
		--checker $(TARGET_DIR)/release/wal_redo_check --require-all

# Coverage is all that is wanted of the compiler: the stable one gives it. What crashes is left in fuzz/artifacts.
FUZZ := RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none
fuzz-tool: setup
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz

# Damaged records and pages; CI has a property test with the same samples.
fuzz-redo: fuzz-tool
	for target in decode redo; do \
		$(FUZZ) --fuzz-dir libs/wal_redo/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

# Any bytes for the safekeeper's decoder and acceptor; CI has a test with the same harness.
fuzz-safekeeper: fuzz-tool
	$(FUZZ) --fuzz-dir safekeeper/fuzz acceptor -- -max_total_time=$(FUZZ_SECONDS)

# One page's speed, and replay beside PostgreSQL's own recovery of the same WAL.
bench-redo: setup
	cargo bench -p wal_redo
	cargo build --release -p wal_redo_check
	$(ORACLE)/throughput.py --checker $(TARGET_DIR)/release/wal_redo_check

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	scripts/check_licences.py

nightly: nightly-regress nightly-garage oracle-all fuzz-redo fuzz-safekeeper

nightly-regress: build extension test-extension setup-tests
	NEON_NIGHTLY=1 $(PYTEST) test_runner/regress -n $(PYTEST_WORKERS)

# A second S3 server, which has to be compiled (5 to 15 minutes, once). It is a tool of the tests, and linked to nothing.
GARAGE_DIR := target/garage
setup-garage: setup-tests
	@test -x $(GARAGE_DIR)/bin/garage || \
		CARGO_TARGET_DIR=$(abspath $(GARAGE_DIR)/build) CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
		CARGO_PROFILE_RELEASE_CODEGEN_UNITS=256 cargo install garage --version 2.5.0 --locked --root $(GARAGE_DIR) \
		--no-default-features --features bundled-libs,sqlite
	@rm -rf $(GARAGE_DIR)/build

# What uses object storage, over that server. It does not keep keys that begin with `/`: see docs/remote_storage.md.
nightly-garage: build extension test-extension setup-garage
	S3_SERVER=garage $(WITH_S3) cargo test -p remote_storage --features s3 -- --skip a_prefix_is_not_needed
	S3_SERVER=garage $(PYTEST) test_runner/regress/test_remote_storage.py test_runner/regress/test_wal_offload.py \
		test_runner/regress/test_damaged_objects.py -n $(PYTEST_WORKERS)

bench: release extension setup-tests
	cargo build --release -p pageserver --example getpage
	NEON_BIN=target/release $(PYTEST) test_runner/performance -s

# Loading, building indexes, scanning: about ten minutes of it.
bench-load: release extension setup-tests
	NEON_BIN=target/release $(PYTEST) test_runner/performance/test_load_and_build.py test_runner/performance/test_scans.py -s

clean:
	cargo clean
	$(MAKE) -C compute/neon PG_CONFIG=$(PG_CONFIG) clean
	$(MAKE) -C compute/neon_test_utils PG_CONFIG=$(PG_CONFIG) clean
