"""Pages are asked for before they are needed: many requests are in flight at once, seen from the wire."""

import pytest

from fixtures.neon_env import Endpoint, NeonEnvBuilder
from fixtures.pagestream_proxy import PagestreamProxy

ROWS = 60_000
SETTINGS = {
    "shared_buffers": "1MB",
    "autovacuum": "off",
    "max_parallel_workers_per_gather": "0",
    "enable_indexonlyscan": "off",
}
BITMAP = "enable_seqscan = off; SET enable_indexscan = off"
# So far apart that neither pages of the table nor of the index are neighbours, which would be asked for ahead as such.
FAR_APART = ROWS // 60
FEW_ROWS = f"SELECT count(v) FROM t WHERE i = ANY (ARRAY(SELECT n * {FAR_APART} FROM generate_series(0, 59) n))"


@pytest.fixture
def watched(neon_env_builder: NeonEnvBuilder, ports):
    """A compute with a table larger than its memory, and what stands between it and the pageserver."""
    env = neon_env_builder.start()
    proxy = PagestreamProxy(ports.get(), env.pageserver.pg_port)
    connection = f"postgresql://no_user@127.0.0.1:{proxy.listener.getsockname()[1]}"
    main = env.endpoint("main").set(**SETTINGS, neon__pageserver_connstring=connection).start()
    main.sql(
        "CREATE TABLE t (i int PRIMARY KEY, v text)",
        f"INSERT INTO t SELECT i, repeat('x', 400) FROM generate_series(0, {ROWS - 1}) i",
        "VACUUM (FREEZE, ANALYZE) t",
    )
    # Else a pageserver that is not interrupted has answered some of a burst of requests before the rest is sent.
    proxy.delay = 0.002
    yield main, proxy
    main.stop()
    proxy.close()


def counted(main: Endpoint, proxy: PagestreamProxy, query: str) -> tuple[int, int]:
    """Requests of a query, and how many at most were in flight."""
    with main.cursor() as cursor:
        cursor.execute("SELECT max(i) FROM t WHERE i < 0")
        proxy.reset()
        cursor.execute(query)
        assert cursor.fetchall()[0][0] > 0
        return proxy.requests, proxy.most_in_flight


def test_sequential_scan_reads_ahead(watched):
    main, proxy = watched
    pages = main.value("SELECT relpages FROM pg_class WHERE relname = 't'")
    requests, in_flight = counted(main, proxy, "SELECT count(*) FROM t")
    assert pages * 0.9 < requests < pages * 1.05
    assert in_flight >= 16
    # No further than the setting says.
    _, in_flight = counted(main, proxy, "SET neon.readahead_buffer_size = 16; SELECT count(*) FROM t")
    assert 4 <= in_flight <= 16


def test_bitmap_scan_prefetches(watched):
    main, proxy = watched
    requests, in_flight = counted(main, proxy, f"SET effective_io_concurrency = 32; SET {BITMAP}; {FEW_ROWS}")
    assert requests >= 60 and in_flight >= 16
    requests, in_flight = counted(main, proxy, f"SET effective_io_concurrency = 0; SET {BITMAP}; {FEW_ROWS}")
    assert requests >= 60 and in_flight <= 2


def test_random_reads_ask_for_nothing_else(watched):
    main, proxy = watched
    lookups = f"""DO $$ DECLARE k int; x text; BEGIN FOR n IN 1..300 LOOP
        k := (n * 997) % {ROWS}; SELECT v INTO x FROM t WHERE i = k; END LOOP; END $$; SELECT 1"""
    requests, in_flight = counted(main, proxy, lookups)
    # One page of the table, and at most one of the index, for each row.
    assert 290 < requests < 650 and in_flight <= 2
