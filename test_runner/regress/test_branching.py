"""Branches: each shows exactly what its ancestor held at the branch point, and goes its own way."""

import psycopg2.errors
import pytest

from fixtures.neon_env import NeonEnv, NeonEnvBuilder

CHECKSUM = "SELECT count(*), coalesce(sum(hashtext(i || v)), 0) FROM t"


def test_branch_and_parent_diverge(neon_simple_env: NeonEnv):
    env = neon_simple_env
    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) i")
    env.branch("dev")
    dev = env.endpoint("dev").start()
    assert dev.sql(CHECKSUM) == main.sql(CHECKSUM)
    dev.sql("UPDATE t SET v = 'dev' WHERE i <= 50; CREATE TABLE dev_only (x int)")
    main.sql("DELETE FROM t WHERE i > 50; CREATE TABLE main_only (x int)")
    assert dev.value("SELECT count(*) FROM t WHERE v = 'dev'") == 50
    assert dev.value("SELECT count(*) FROM t") == 100
    assert main.value("SELECT count(*) FROM t WHERE v = 'old'") == 50
    assert dev.value("SELECT to_regclass('main_only')") is None
    assert main.value("SELECT to_regclass('dev_only')") is None
    dev.restart()
    assert dev.value("SELECT count(*) FROM t WHERE v = 'dev'") == 50


def test_branch_of_branch_of_branch(neon_simple_env: NeonEnv):
    env = neon_simple_env
    endpoint = env.endpoint("main").start()
    endpoint.sql("CREATE TABLE t (depth int)")
    for depth in range(1, 6):
        endpoint.sql(f"INSERT INTO t VALUES ({depth})")
        parent = "main" if depth == 1 else f"b{depth - 1}"
        env.branch(f"b{depth}", parent)
        endpoint.stop()
        endpoint = env.endpoint(f"b{depth}").start()
        assert endpoint.sql("SELECT depth FROM t ORDER BY 1") == [(d,) for d in range(1, depth + 1)]


def test_a_prepared_transaction_goes_on_in_parent_and_branch(neon_simple_env: NeonEnv):
    env = neon_simple_env
    main = env.endpoint("main").set(max_prepared_transactions=2).start()
    main.sql("CREATE TABLE t (i int)")
    main.sql("BEGIN ISOLATION LEVEL SERIALIZABLE", "INSERT INTO t VALUES (2)", "PREPARE TRANSACTION 'p'")
    env.branch("dev")
    dev = env.endpoint("dev").set(max_prepared_transactions=2).start()
    for endpoint in (main, dev):
        assert endpoint.sql("SELECT gid FROM pg_prepared_xacts") == [("p",)]
        assert endpoint.sql("SELECT i FROM t") == []
        # Whether it will be safe to read depends on how the prepared transaction ends.
        with pytest.raises(psycopg2.errors.QueryCanceled):
            endpoint.sql(
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
                "SET statement_timeout = '500ms'",
                "SELECT i FROM t",
            )
    main.sql("COMMIT PREPARED 'p'")
    dev.sql("ROLLBACK PREPARED 'p'")
    deferrable = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE"
    assert main.sql(deferrable, "SELECT i FROM t") == [(2,)]
    assert dev.sql(deferrable, "SELECT i FROM t") == []


def test_branches_at_recorded_lsns(neon_env_builder: NeonEnvBuilder):
    """20 points during a workload that does not fit the buffers, half of them before a pageserver restart."""
    env = neon_env_builder.start()
    main = env.endpoint("main").set(shared_buffers="1MB").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
    recorded = []
    for step in range(20):
        main.sql(
            f"INSERT INTO t SELECT i, repeat('{step}', 300) FROM generate_series({step * 500}, {step * 500 + 499}) i;"
            f"UPDATE t SET v = v || '{step}' WHERE i % 20 = {step}; DELETE FROM t WHERE i % 997 = {step}"
        )
        if step % 6 == 5:
            main.sql("VACUUM t")
        recorded.append((main.lsn(), main.sql(CHECKSUM)))
        if step == 10:
            env.pageserver.stop()
            env.pageserver.start()
    for number, (lsn, expected) in enumerate(recorded):
        env.branch(f"at{number}", lsn=lsn)
        endpoint = env.endpoint(f"at{number}").start()
        assert endpoint.sql(CHECKSUM) == expected, f"branch at {lsn}"
        assert endpoint.sql("SELECT count(*) FROM t WHERE v LIKE '%never%'") == [(0,)]
        endpoint.stop()
    assert main.sql(CHECKSUM) == recorded[-1][1]


def test_read_only_endpoint_at_an_lsn(neon_simple_env: NeonEnv):
    env = neon_simple_env
    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int, v text); INSERT INTO t VALUES (1, 'then')")
    lsn = main.lsn()
    main.sql("UPDATE t SET v = 'now'; INSERT INTO t VALUES (2, 'now')")
    then = env.endpoint("then", branch="main", lsn=lsn).start()
    assert then.sql("SELECT i, v FROM t") == [(1, "then")]
    assert main.sql("SELECT i, v FROM t ORDER BY i") == [(1, "now"), (2, "now")]
    assert then.value("SELECT pg_is_in_recovery()")


def test_read_only_endpoint_at_a_time(neon_simple_env: NeonEnv):
    """On a timeline and on a branch of it: each shows what had been committed by then."""
    env = neon_simple_env
    http = env.pageserver.http()

    def insert(endpoint, value: int) -> str:
        """Commits a row; a time after that and before whatever comes next."""
        now = """SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        endpoint.sql(f"INSERT INTO t VALUES ({value})", "SELECT pg_sleep(0.2)")
        time = endpoint.value(now)
        endpoint.sql("SELECT pg_sleep(0.2)")
        return time

    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int)")
    times = [insert(main, n) for n in range(3)]
    env.branch("child")
    child = env.endpoint("child").start()
    times += [insert(child, 100), insert(main, 3), insert(child, 101), insert(main, 4)]
    for branch, time, rows in [
        ("main", times[0], [0]),
        ("main", times[2], [0, 1, 2]),
        ("main", times[5], [0, 1, 2, 3]),
        ("child", times[3], [0, 1, 2, 100]),
    ]:
        lsn = http.lsn_by_timestamp(env.tenant, env.timelines[branch], time)
        reader = env.endpoint(f"{branch}-{len(rows)}", branch=branch, lsn=lsn).start()
        assert [i for (i,) in reader.sql("SELECT i FROM t ORDER BY i")] == rows
    assert http.lsn_by_timestamp(env.tenant, env.timelines["main"], "2100-01-01T00:00:00Z") == "future"
    assert http.lsn_by_timestamp(env.tenant, env.timelines["main"], "2001-01-01T00:00:00Z") == "past"
