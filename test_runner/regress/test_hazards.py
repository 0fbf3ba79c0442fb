"""Hazards of running on pages that come from elsewhere, beyond those of evicted pages in test_compute_storage.py."""

import psycopg2
import pytest

from fixtures.neon_env import Endpoint, NeonEnvBuilder
from fixtures.stock import run_as_account

SMALL = {"shared_buffers": "1MB", "autovacuum": "off"}


def start(builder: NeonEnvBuilder, **settings) -> Endpoint:
    main = builder.start().endpoint("main").set(**{**SMALL, **settings}).start()
    main.sql("CREATE EXTENSION neon_test_utils")
    return main


def test_a_read_waits_for_what_the_pageserver_has_not_got(neon_env_builder: NeonEnvBuilder):
    """A page changed, evicted and read again at once: the pageserver gets the change only after the commit."""
    main = start(neon_env_builder)
    main.sql("CREATE TABLE t (i int, n int)", "INSERT INTO t VALUES (1, 0)")
    with main.cursor() as cursor:
        for n in range(1, 60):
            cursor.execute(f"UPDATE t SET n = {n}; SELECT clear_buffer_cache()")
            cursor.execute("SELECT n FROM t")
            assert cursor.fetchall() == [(n,)]


PARALLEL = (
    "SET max_parallel_workers_per_gather = 4; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;"
    " SET min_parallel_table_scan_size = 0; SET min_parallel_index_scan_size = 0; SET parallel_leader_participation = off;"
)


def test_parallel_workers_see_what_their_leader_has_written(neon_env_builder: NeonEnvBuilder):
    """Relations, sizes and pages of a transaction that is not over, while another one goes on extending."""
    main = start(neon_env_builder, max_parallel_workers="4", max_worker_processes="8")
    with main.cursor(autocommit=False) as cursor:
        cursor.execute(PARALLEL)
        cursor.execute("CREATE TABLE t (i int, v text)")
        for n in range(1, 5):
            cursor.execute("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 3000) i")
            cursor.execute("SELECT count(*), sum(length(v)) FROM t")
            assert cursor.fetchall() == [(n * 3000, n * 3000 * 200)]
        cursor.execute("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT count(*) FROM t")
        assert "Workers Launched: " in str(cursor.fetchall())
        cursor.execute("SET maintenance_work_mem = '64MB'; ALTER TABLE t SET (parallel_workers = 4)")
        cursor.execute("CREATE INDEX t_i ON t (i)")
        cursor.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM t WHERE i > 0")
        assert cursor.fetchall() == [(12000,)]
        cursor.connection.commit()
    assert main.value(PARALLEL + "SELECT count(*) FROM t") == 12000


def test_nobody_commits_before_a_quorum_is_there(neon_env_builder: NeonEnvBuilder):
    """Early in its start the server does not know yet that commits have to wait, so connections do."""
    neon_env_builder.safekeepers = 3
    main = start(neon_env_builder)
    env = neon_env_builder.env
    main.sql("CREATE TABLE t (i int)")
    main.stop()
    for node in env.safekeepers[:2]:
        node.stop()
    # Not by neon_local, which would want a quorum itself.
    run_as_account("pg_ctl", "-D", str(main.dir), "-l", str(main.dir / "pg.log"), "-w", "-t", "5", "start", cwd=main.dir)
    try:
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            psycopg2.connect(main.dsn(connect_timeout=4))
    finally:
        run_as_account("pg_ctl", "-D", str(main.dir), "-m", "immediate", "stop", cwd=main.dir)
    for node in env.safekeepers[:2]:
        node.start()
    main.start()
    assert main.value("SELECT count(*) FROM t") == 0


def test_no_wal_in_the_shutdown_checkpoint(neon_env_builder: NeonEnvBuilder):
    """It would end in a PANIC. Free space maps, which are logged when they are evicted, are not then."""
    # Alone: with safekeepers, an ordinary checkpoint before the shutdown leaves nothing to write.
    neon_env_builder.safekeepers = 0
    env = neon_env_builder.start()
    alone = env.endpoint("main").set(autovacuum="off", synchronous_standby_names="").start()
    alone.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) i")
    alone.sql("DELETE FROM t WHERE i % 2 = 0", "VACUUM t")
    alone.stop()
    assert "PANIC" not in alone.log
    assert "database system is shut down" in alone.log
