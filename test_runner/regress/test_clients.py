"""The clients people use, unchanged."""

import asyncio

import asyncpg

from fixtures.neon_env import NeonEnv, run


def test_psql_and_drivers(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").start()
    assert endpoint.psql("SELECT 40 + 2") == "42\n"
    endpoint.sql("CREATE TABLE t (i int PRIMARY KEY, s text)")
    with endpoint.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(i, f"row {i}") for i in range(1000)])

    async def through_asyncpg():
        connection = await asyncpg.connect(
            host="127.0.0.1", port=endpoint.port, user="cloud_admin", database="postgres"
        )
        try:
            async with connection.transaction():
                await connection.copy_records_to_table("t", records=[(i, "copied") for i in range(1000, 3000)])
            return await connection.fetchval("SELECT count(*) FROM t WHERE s = $1 OR i < $2", "copied", 10)
        finally:
            await connection.close()

    assert asyncio.run(through_asyncpg()) == 2010


def test_pgbench_sums_agree_after_restart(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").start()
    endpoint.pgbench("-i", "-s", "2")
    endpoint.pgbench("-c", "4", "-t", "200")
    sums = [f"(SELECT coalesce(sum({c}), 0) FROM pgbench_{t})" for t, c in [
        ("accounts", "abalance"), ("branches", "bbalance"), ("tellers", "tbalance"), ("history", "delta")]]
    query = "SELECT " + ", ".join(sums)

    def check():
        ((*values,),) = endpoint.sql(query)
        assert len(set(values)) == 1, values
        assert endpoint.value("SELECT count(*) FROM pgbench_history") == 800
        return values

    before = check()
    endpoint.restart()
    assert check() == before


def test_dump_and_restore(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").start()
    endpoint.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS s FROM generate_series(1, 5000) i")
    endpoint.sql("CREATE INDEX ON t (s); CREATE VIEW v AS SELECT s FROM t; CREATE SEQUENCE q START 7")
    dump = neon_simple_env.run_pg("pg_dump", "-d", endpoint.dsn())
    endpoint.sql("CREATE DATABASE restored")
    file = neon_simple_env.repo.parent / "dump.sql"
    file.write_text(dump)
    neon_simple_env.run_pg("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", str(file), endpoint.dsn("restored"))
    checksum = "SELECT count(*), md5(string_agg(i || s, ',' ORDER BY i)) FROM t"
    assert endpoint.sql(checksum) == endpoint.sql(checksum, dbname="restored")
    assert endpoint.value("SELECT nextval('q')", "restored") == 7
    endpoint.restart()
    assert endpoint.sql(checksum) == endpoint.sql(checksum, dbname="restored")


def test_version_is_that_of_the_stock_server(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").start()
    stock = run(["/usr/lib/postgresql/15/bin/postgres", "--version"], {}, 10)
    assert endpoint.value("SHOW server_version") in stock
