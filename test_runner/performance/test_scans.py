"""Reading what is not in shared buffers: from the pageserver, from the local file cache, and beside a stock server.

Both are at rest: the stock server has written its checkpoint, and the pageserver has compacted what was loaded.

The stock server reads from the kernel's cache: its table fits in there, and was just written. Only the cold scan has
nothing of either in any cache: both servers and the pageserver have been started again, and the kernel has been
told to forget their files.
"""

import os
import time
from pathlib import Path

import pytest

from fixtures.compare import Comparison, report_values
from fixtures.neon_env import Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.stock import StockServer

ROWS = 2_000_000
ROUNDS = 5
COLD_ROUNDS = 11
POINT_READS = 5000
# Seconds; 20 by default.
COMPACTION_PERIOD = 2
SETTINGS = {"shared_buffers": "16MB", "autovacuum": "off", "max_parallel_workers_per_gather": "0", "track_io_timing": "on", "enable_indexonlyscan": "off"}
FILL = [
    "CREATE TABLE t (i int PRIMARY KEY, v text)",
    f"INSERT INTO t SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, {ROWS}) i",
    "VACUUM (FREEZE, ANALYZE) t",
    "CHECKPOINT",
]
# Something that passes all pages and does little with them.
SCAN = "SELECT count(*) FROM t"
# One bitmap of heap pages too far apart for read-ahead.
BITMAP_SCAN = """SET enable_seqscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off;
    SELECT count(v) FROM t WHERE i = ANY (ARRAY(SELECT (n * 997) % 2000000 + 1 FROM generate_series(1, 2000) n))"""


def seconds(server, query: str) -> float:
    started = time.monotonic()
    server.sql(query)
    return time.monotonic() - started


def wait_for_rest(env: NeonEnv):
    """Until the pageserver's layers have not changed for some periods of compaction."""
    deadline, unchanged, before = time.monotonic() + 120, 0, None
    while unchanged < 4:
        assert time.monotonic() < deadline, "the pageserver goes on compacting"
        time.sleep(COMPACTION_PERIOD)
        layers = env.pageserver.http().layers(env.tenant, env.timelines["main"])["historic_layers"]
        names = {layer["layer_file_name"] for layer in layers}
        unchanged, before = (unchanged + 1 if names == before else 0), names


@pytest.fixture
def peers(neon_env_builder: NeonEnvBuilder, test_dir, ports):
    """Our endpoint, with a cache that has room for everything, and a stock server, both filled."""
    neon_env_builder.safekeepers = 3
    neon_env_builder.tenant_settings["compaction_period"] = f"{COMPACTION_PERIOD}s"
    env = neon_env_builder.start()
    ours = env.endpoint("main").set(**SETTINGS, neon__max_file_cache_size="1GB").start()
    ours.sql("CREATE EXTENSION neon")
    stock = StockServer(test_dir / "stock", ports.get(), **SETTINGS, wal_level="replica").init().start()
    for server in (ours, stock):
        for statement in FILL:
            server.sql(statement)
    wait_for_rest(env)
    yield ours, stock
    stock.destroy()


def without_cache(ours: Endpoint):
    ours.sql("ALTER SYSTEM SET neon.file_cache_size_limit = 0", "SELECT pg_reload_conf()", "SELECT pg_sleep(1)")
    assert ours.value("SELECT limit_bytes FROM local_cache_stat") == 0


def forget_files(directory: Path):
    """Has the kernel write all files below out and drop them from its cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_scan(server: Endpoint | StockServer) -> float:
    """Seconds of a scan with nothing in any cache; a compute's table is in the pageserver's files."""
    server.stop()
    if isinstance(server, Endpoint):
        server.env.pageserver.stop()
        forget_files(server.env.repo / "tenants")
        server.env.pageserver.start()
    else:
        forget_files(server.data)
    server.start()
    # The catalog's pages are not what is measured.
    server.sql("EXPLAIN " + SCAN)
    return seconds(server, SCAN)


def test_cold_sequential_scan(peers):
    ours, stock = peers
    # The disk of a virtual machine has caches of its own: few rounds say little.
    Comparison("sequential_scan_cold", "s", False).alternate(
        lambda: cold_scan(ours), lambda: cold_scan(stock), COLD_ROUNDS
    ).report()


def test_sequential_scan_from_the_pageserver(peers):
    ours, stock = peers
    without_cache(ours)
    for depth in (16, 128):
        ours.sql(f"ALTER SYSTEM SET neon.readahead_buffer_size = {depth}", "SELECT pg_reload_conf()")
        scan = lambda server: seconds(server, SCAN)
        name = f"sequential_scan_pageserver_readahead_{depth}"
        Comparison(name, "s", False).alternate(lambda: scan(ours), lambda: scan(stock), ROUNDS).report()


def test_sequential_scan_from_the_file_cache(peers):
    ours, stock = peers
    seconds(ours, SCAN), seconds(stock, SCAN)
    scan = lambda server: seconds(server, SCAN)
    Comparison("sequential_scan_file_cache", "s", False).alternate(
        lambda: scan(ours), lambda: scan(stock), ROUNDS
    ).report()


def test_bitmap_heap_scan_prefetches(peers):
    """The peer is our own compute without prefetch."""
    ours, _ = peers
    without_cache(ours)
    scan = lambda concurrency: seconds(ours, f"SET effective_io_concurrency = {concurrency}; {BITMAP_SCAN}")
    Comparison("bitmap_scan_io_concurrency_64_to_0", "s", False).alternate(
        lambda: scan(64), lambda: scan(0), ROUNDS
    ).report()


def point_read_us(server) -> float:
    """Time to read a page into shared buffers, of reads in random order by one session."""
    reads = f"""DO $$ DECLARE x text; k int; BEGIN FOR n IN 1..{POINT_READS} LOOP
                k := 1 + (random() * {ROWS - 1})::int; SELECT v INTO x FROM t WHERE i = k; END LOOP; END $$"""
    totals = "SELECT blk_read_time, blks_read FROM pg_stat_database WHERE datname = 'postgres'"
    before = server.sql(totals)[0]
    server.sql(reads)
    # Counters arrive when the session ends.
    time.sleep(0.5)
    after = server.sql(totals)[0]
    return (after[0] - before[0]) * 1000 / (after[1] - before[1])


def test_random_point_reads(peers):
    ours, stock = peers
    point_read_us(ours), point_read_us(stock)
    report_values("random_point_read_stock_kernel_cache", "us", [point_read_us(stock) for _ in range(ROUNDS)])
    report_values("random_point_read_file_cache", "us", [point_read_us(ours) for _ in range(ROUNDS)])
    without_cache(ours)
    report_values("random_point_read_pageserver", "us", [point_read_us(ours) for _ in range(ROUNDS)])
