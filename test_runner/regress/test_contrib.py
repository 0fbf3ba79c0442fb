"""The tests of the contrib modules that Debian ships: the result here is that of a stock server."""

import os
import re

import pytest

from fixtures.neon_env import NeonEnv, NeonEnvBuilder
from fixtures.pg_suites import contrib_suite, differences, run_suite
from fixtures.ports import PortDistributor
from fixtures.stock import ACCOUNT, StockServer

# What these modules want of a server.
SETTINGS = {
    "wal_level": "logical",
    "max_prepared_transactions": 10,
    "logical_decoding_work_mem": "64kB",
    "autovacuum": "off",
}

# Modules that look at storage, WAL or logical decoding, or have access methods of their own.
STORAGE = [
    ("amcheck", "REGRESS"),
    ("bloom", "REGRESS"),
    ("pageinspect", "REGRESS"),
    ("pg_freespacemap", "REGRESS"),
    ("pg_stat_statements", "REGRESS"),
    ("pg_surgery", "REGRESS"),
    ("pg_visibility", "REGRESS"),
    ("pg_walinspect", "REGRESS"),
    ("pgstattuple", "REGRESS"),
    ("test_decoding", "REGRESS"),
]

# The others. Left out: those of procedural languages that are not installed, and what is about the set-up of a server.
OTHERS = [
    (module, "REGRESS")
    for module in (
        "adminpack auto_explain btree_gin btree_gist citext cube dict_int dict_xsyn earthdistance file_fdw fuzzystrmatch"
        " hstore intarray isn lo ltree passwordcheck pg_trgm pgcrypto seg tablefunc tsm_system_rows tsm_system_time unaccent"
        " uuid-ossp xml2"
    ).split()
] + [("test_decoding", "ISOLATION")]

# These connect to their own server, by libpq's default, which is Debian's socket directory, and as the account's name.
CLIENTS = [("dblink", "REGRESS"), ("postgres_fdw", "REGRESS"), ("postgres_fdw", "ISOLATION")]
SOCKETS = "/var/run/postgresql"


# These list all replication slots, and the walproposer's is one more.
LIST_SLOTS = {"test_decoding-regress ddl", "test_decoding-regress permissions", "test_decoding-regress slot"}


def only_adds_rows(diff: str) -> bool:
    """Whether ours prints all that stock prints, and more: the number of rows and the width of columns apart."""
    lost = [line for line in diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    return all(re.fullmatch(r"-(\(\d+rows?\)|[-+]*)", line) for line in lost) and "wal_proposer_slot" in diff


def compare(env: NeonEnv, directory, ports: PortDistributor, modules: list[tuple[str, str]], **more):
    """Runs the modules' tests on both servers, one module after the other; fails with all that differs."""
    preload, settings = "pg_stat_statements", {**SETTINGS, **more}
    stock = StockServer(directory / "stock", ports.get(), **settings, shared_preload_libraries=preload).init().start()
    endpoint = env.endpoint("main").set(**settings, shared_preload_libraries=f"neon,{preload}").start()
    for server in (stock, endpoint):
        server.sql(f"CREATE ROLE {ACCOUNT} SUPERUSER LOGIN")
    found = {}
    try:
        for module in modules:
            suite = contrib_suite(*module)
            theirs = run_suite(suite, stock.port, directory / f"{suite.name}-stock")
            ours = run_suite(suite, endpoint.port, directory / f"{suite.name}-ours")
            for test, diff in differences(ours, theirs).items():
                name = f"{suite.name} {test}"
                if not (name in LIST_SLOTS and only_adds_rows(diff)):
                    found[name] = diff
    finally:
        stock.destroy()
    assert not found, "\n".join(f"--- {test}\n{diff}" for test, diff in found.items())


def test_contrib_modules_that_look_at_storage(neon_env_builder: NeonEnvBuilder, test_dir, ports: PortDistributor):
    compare(neon_env_builder.start(), test_dir, ports, STORAGE)


@pytest.mark.timeout(900)
def test_other_contrib_modules(neon_env_builder: NeonEnvBuilder, test_dir, ports: PortDistributor):
    compare(neon_env_builder.start(), test_dir, ports, OTHERS)


@pytest.mark.skipif(os.geteuid() != 0, reason=f"only root runs servers as {ACCOUNT}, to whom {SOCKETS} is open")
@pytest.mark.timeout(900)
def test_contrib_modules_that_connect_to_servers(
    neon_env_builder: NeonEnvBuilder, test_dir, ports: PortDistributor
):
    compare(neon_env_builder.start(), test_dir, ports, CLIENTS, unix_socket_directories=SOCKETS)
