"""PostgreSQL's own suites: every test has the result here that it has on a stock server, and what they leave is sound.

The suites exercise all of SQL at once, so what they leave behind is the best data there is for the checks of the
whole state: indexes agree with tables, a restart changes nothing, the pageserver has the pages the compute has.
"""

from pathlib import Path

import pytest

from fixtures.neon_env import Background, Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.pg_suites import ISOLATION, REGRESS, SETTINGS, check_same, run_suite, stock_run
from fixtures.processes import wait_until
from fixtures.whole_state import amcheck, databases, differing_pages, dump_all, table_checksums


def run_regress_noting_middle(endpoint: Endpoint, directory: Path, tests: int):
    """Runs the regression suite; returns its outcome, and the LSN when half of the tests had begun."""
    run = Background(run_suite, REGRESS, endpoint.port, directory)
    wait_until(lambda: len(list(directory.glob("results/*.out"))) >= tests // 2, "half of the tests", timeout=600)
    middle = endpoint.lsn()
    return run.join(timeout=900), middle


def check_whole_state(endpoint: Endpoint):
    """Indexes and tables agree, a restart changes nothing, and the pageserver's pages are the compute's."""
    for database in databases(endpoint):
        endpoint.sql("CREATE EXTENSION IF NOT EXISTS amcheck", dbname=database)
        endpoint.sql("CREATE EXTENSION IF NOT EXISTS neon_test_utils", dbname=database)
    assert differing_pages(endpoint) == {}
    amcheck(endpoint)
    dump, checksums = dump_all(endpoint), table_checksums(endpoint)
    endpoint.restart()
    assert table_checksums(endpoint) == checksums
    assert dump_all(endpoint) == dump
    amcheck(endpoint)


def end_prepared_transactions(endpoint: Endpoint):
    """Rolls back what the regression suite had prepared where the branch begins.

    Nobody is left to end these transactions, and a serializable one of them holds up every SERIALIZABLE READ ONLY
    DEFERRABLE transaction, as the isolation suite begins them: those wait until all that wrote before them have ended.
    """
    for gid, database in endpoint.sql("SELECT gid, database FROM pg_prepared_xacts"):
        endpoint.sql(f"ROLLBACK PREPARED '{gid}'", dbname=database)


def check_branch_from_middle(env: NeonEnv, lsn: str, directory: Path, stock_isolation):
    """The checks on a branch that begins in the midst of the regression suite, and the isolation suite there."""
    env.branch("middle", lsn=lsn)
    endpoint = env.endpoint("middle").set(autovacuum="off", **SETTINGS).start()
    check_whole_state(endpoint)
    end_prepared_transactions(endpoint)
    check_same(run_suite(ISOLATION, endpoint.port, directory), stock_isolation)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("shared_buffers", "file_cache"),
    [
        pytest.param("128MB", True, id="as neon_local sets it up"),
        pytest.param("1MB", False, id="pages come from the pageserver"),
        pytest.param("1MB", True, id="pages come from the file cache"),
    ],
)
def test_suites_and_what_they_leave(neon_env_builder: NeonEnvBuilder, ports, test_dir: Path, shared_buffers, file_cache):
    stock_regress, stock_isolation = stock_run(REGRESS, ports), stock_run(ISOLATION, ports)
    neon_env_builder.safekeepers = 3
    neon_env_builder.file_cache = file_cache
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").set(shared_buffers=shared_buffers, **SETTINGS).start()
    run, middle = run_regress_noting_middle(endpoint, test_dir / "regress", len(stock_regress.passed))
    check_same(run, stock_regress)
    check_same(run_suite(ISOLATION, endpoint.port, test_dir / "isolation"), stock_isolation)
    endpoint.sql("ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()")
    endpoint.set(autovacuum="off")
    check_whole_state(endpoint)
    check_branch_from_middle(env, middle, test_dir / "branch", stock_isolation)
