"""1 MB of shared buffers, a hundred times as much data: every page goes through the pageserver."""

from fixtures.neon_env import NeonEnvBuilder


def test_data_a_hundred_times_the_buffers(neon_env_builder: NeonEnvBuilder):
    neon_env_builder.tenant_settings = {"checkpoint_distance": 16 * 1024 * 1024, "compaction_period": "1s"}
    env = neon_env_builder.start()
    main = env.endpoint("main").set(shared_buffers="1MB").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text, n int)")
    main.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 20), 0 FROM generate_series(1, 150000) i")
    main.sql("CREATE INDEX ON t (n, i)")
    assert main.value("SELECT pg_table_size('t')") > 100 * 1024 * 1024
    main.sql("UPDATE t SET n = i % 7 WHERE i % 3 = 0")
    main.sql("DELETE FROM t WHERE i % 10 = 9", "VACUUM t")
    main.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 20), 8 FROM generate_series(150001, 160000) i")
    check = """SELECT count(*), sum(n), count(*) FILTER (WHERE v <> repeat(md5(i::text), 20)) FROM t"""
    expected = main.sql(check)
    assert expected[0][0] == 160000 - 15000 and expected[0][2] == 0
    by_index = "SET enable_seqscan = off; SELECT count(*), sum(n) FROM t WHERE n >= 0"
    assert main.sql(by_index) == [expected[0][:2]]
    main.restart()
    assert main.sql(check) == expected
    assert main.sql(by_index) == [expected[0][:2]]
