"""The local file cache: it serves what it has, and never an old version of it."""

import random
import threading

import psycopg2
import pytest

from fixtures import processes
from fixtures.neon_env import Background, Endpoint, NeonEnvBuilder
from fixtures.pagestream_proxy import PagestreamProxy

MIB = 1024 * 1024


def start(builder: NeonEnvBuilder, **settings) -> Endpoint:
    defaults = {"shared_buffers": "1MB", "autovacuum": "off", "neon__max_file_cache_size": "64MB"}
    main = builder.start().endpoint("main").set(**{**defaults, **settings}).start()
    main.sql("CREATE EXTENSION neon", "CREATE EXTENSION neon_test_utils")
    return main


def stat(main: Endpoint, column: str) -> int:
    return main.value(f"SELECT {column} FROM local_cache_stat")


def make_table(main: Endpoint, rows: int = 40000):
    main.sql("CREATE TABLE t (i int, v text)", f"INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, {rows}) i")


def test_pages_survive_their_backend(neon_env_builder: NeonEnvBuilder):
    """Read once, they are read again without the pageserver."""
    main = start(neon_env_builder)
    make_table(main)
    main.restart()
    assert stat(main, "used_bytes") < MIB
    read = "SELECT count(*), sum(length(v)) FROM t"
    with main.cursor() as idle:
        for cold in (True, False):
            before = main.sql("SELECT hits, misses FROM local_cache_stat")[0]
            main.sql("SELECT clear_buffer_cache()")
            assert main.sql(read) == [(40000, 8_000_000)]
            hits, misses = (b - a for a, b in zip(before, main.sql("SELECT hits, misses FROM local_cache_stat")[0]))
            assert (misses > 1000) if cold else (hits > 1000 and misses < 50), f"{hits=} {misses=}"
        # A connection that reads only what is in the cache does not even need a pageserver.
        idle.execute("SELECT 1")
        neon_env_builder.env.pageserver.stop()
        idle.execute("SELECT clear_buffer_cache(); SET neon.pageserver_timeout = '1s'")
        idle.execute(read)
        assert idle.fetchall() == [(40000, 8_000_000)]
        neon_env_builder.env.pageserver.start()


def test_computes_have_a_cache_for_what_they_write(neon_env_builder: NeonEnvBuilder):
    """As neon_local makes them: what has left shared buffers, written or built, is in the cache."""
    neon_env_builder.file_cache = True
    main = neon_env_builder.start().endpoint("main").set(shared_buffers="1MB", autovacuum="off").start()
    main.sql("CREATE EXTENSION neon", "CREATE EXTENSION neon_test_utils")
    assert stat(main, "limit_bytes") == 2048 * MIB
    make_table(main)
    main.sql("CREATE INDEX t_i ON t (i)", "SELECT clear_buffer_cache()")
    for relation in ("t", "t_i"):
        here = f"SELECT count(*) FROM local_cache WHERE relfilenode = pg_relation_filenode('{relation}') AND relforknumber = 0"
        assert main.value(here) == main.value(f"SELECT pg_relation_size('{relation}') / 8192") > 100
    before = main.sql("SELECT hits, misses FROM local_cache_stat")[0]
    assert main.sql("SELECT count(*), sum(length(v)) FROM t") == [(40000, 8_000_000)]
    hits, misses = (b - a for a, b in zip(before, main.sql("SELECT hits, misses FROM local_cache_stat")[0]))
    assert hits > 1000 and misses < 50, f"{hits=} {misses=}"


def test_views(neon_env_builder: NeonEnvBuilder):
    main = start(neon_env_builder)
    make_table(main, 5000)
    main.sql("CHECKPOINT", "SELECT clear_buffer_cache()", "SELECT count(*) FROM t")
    pages = main.value("SELECT pg_relation_size('t') / 8192")
    rows = main.sql(
        "SELECT relblocknumber, slot, accesses FROM local_cache WHERE relfilenode = pg_relation_filenode('t')"
        " AND reldatabase = (SELECT oid FROM pg_database WHERE datname = 'postgres') AND reltablespace = 1663"
        " AND relforknumber = 0 ORDER BY 1"
    )
    assert [row[0] for row in rows] == list(range(pages))
    assert len({row[1] for row in rows}) == pages and all(row[2] > 0 for row in rows)
    main.sql("CREATE ROLE somebody LOGIN")
    with psycopg2.connect(main.dsn(user="somebody")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT limit_bytes FROM local_cache_stat")
        assert cursor.fetchall() == [(64 * MIB,)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT * FROM local_cache")


def test_no_cache(neon_env_builder: NeonEnvBuilder):
    main = start(neon_env_builder, neon__max_file_cache_size="0")
    make_table(main)
    assert main.sql("SELECT hits + misses + stores + used_bytes, limit_bytes FROM local_cache_stat") == [(0, 0)]
    assert main.sql("SELECT * FROM local_cache") == []


def set_limit(main: Endpoint, megabytes: int):
    main.sql(f"ALTER SYSTEM SET neon.file_cache_size_limit = '{megabytes}MB'", "SELECT pg_reload_conf()")
    expected = min(megabytes, 64) * MIB
    processes.wait_until(lambda: stat(main, "limit_bytes") == expected, f"the limit is {megabytes} MB")


def test_resizing(neon_env_builder: NeonEnvBuilder):
    main = start(neon_env_builder, neon__file_cache_size_limit="4MB")
    assert stat(main, "limit_bytes") == 4 * MIB
    make_table(main)
    size = main.value("SELECT pg_relation_size('t')")
    assert 8 * MIB < size < 16 * MIB
    assert 3 * MIB < stat(main, "used_bytes") <= 4 * MIB
    for limit in (16, 1, 0, 1000, 3):
        set_limit(main, limit)
        assert main.sql("SELECT count(*), sum(length(v)) FROM t") == [(40000, 8_000_000)]
        used = stat(main, "used_bytes")
        assert min(size, limit * MIB) * 0.9 <= used <= limit * MIB
        assert main.value("SELECT coalesce(max(slot), -1) FROM local_cache") < limit * MIB // 8192


def test_what_is_truncated_or_dropped_goes(neon_env_builder: NeonEnvBuilder):
    main = start(neon_env_builder)
    here = "SELECT count(*) FROM local_cache WHERE relfilenode = %s AND relforknumber = 0"
    make_table(main)
    number = main.value("SELECT pg_relation_filenode('t')")
    assert main.value(here % number) > 1000
    main.sql("DELETE FROM t WHERE i > 20000", "VACUUM (TRUNCATE) t")
    pages = main.value("SELECT pg_relation_size('t') / 8192")
    assert pages < 700 and main.value(here % number + f" AND relblocknumber >= {pages}") == 0
    main.sql("INSERT INTO t SELECT i, repeat('y', 200) FROM generate_series(1, 20000) i")
    assert main.sql("SELECT v, count(*) FROM t GROUP BY v ORDER BY v DESC") == [("y" * 200, 20000), ("x" * 200, 20000)]
    main.sql("DROP TABLE t", "CHECKPOINT")
    assert main.value(here % number) == 0
    main.sql("CREATE DATABASE db")
    main.sql("CREATE TABLE t AS SELECT generate_series(1, 50000) i", dbname="db")
    oid = main.value("SELECT oid FROM pg_database WHERE datname = 'db'")
    in_database = f"SELECT count(*) FROM local_cache WHERE reldatabase = {oid}"
    assert main.value(in_database) > 100
    main.sql("DROP DATABASE db")
    assert main.value(in_database) == 0


class Writer:
    """Changes rows of its own, and knows what they must be."""

    def __init__(self, main: Endpoint, number: int, rows: int):
        self.main, self.number, self.random = main, number, random.Random(number)
        self.values = {n * 8 + number: 0 for n in range(rows)}

    def run(self, stopped: threading.Event):
        with self.main.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            keys = list(self.values)
            while not stopped.is_set():
                for key in self.random.sample(keys, 20):
                    cursor.execute(f"UPDATE t SET n = n + 1 WHERE i = {key} RETURNING n")
                    self.values[key] += 1
                    assert cursor.fetchall() == [(self.values[key],)]
                for key in self.random.sample(keys, 20):
                    cursor.execute(f"SELECT n FROM t WHERE i = {key}")
                    assert cursor.fetchall() == [(self.values[key],)], key


def churn(main: Endpoint, stopped: threading.Event):
    """Relations that come, shrink and go; sizes that change; everything that makes pages obsolete."""
    megabytes = random.Random(0)
    with main.cursor() as cursor:
        while not stopped.is_set():
            cursor.execute("CREATE TABLE c AS SELECT i, repeat('c', 500) v FROM generate_series(1, 3000) i")
            cursor.execute("DELETE FROM c WHERE i > 1000")
            cursor.execute("VACUUM c")
            cursor.execute("INSERT INTO c SELECT i, repeat('d', 500) FROM generate_series(1, 1000) i")
            cursor.execute("SELECT count(*) FILTER (WHERE v = repeat('d', 500)), count(*) FROM c")
            assert cursor.fetchall() == [(1000, 2000)]
            cursor.execute("DROP TABLE c")
            cursor.execute(f"ALTER SYSTEM SET neon.file_cache_size_limit = '{megabytes.choice([0, 1, 2, 3, 6, 64])}MB'")
            cursor.execute("SELECT pg_reload_conf()")


def test_never_an_old_version(neon_env_builder: NeonEnvBuilder):
    """Writers that know what they wrote, on data larger than buffers and cache, while the cache changes its size."""
    main = start(neon_env_builder, neon__file_cache_size_limit="3MB")
    rows = 1500
    main.sql("CREATE TABLE t (i int PRIMARY KEY, n int, v text) WITH (fillfactor = 70)")
    main.sql(f"INSERT INTO t SELECT i, 0, repeat('v', 300) FROM generate_series(0, {8 * rows - 1}) i")
    stopped = threading.Event()
    writers = [Writer(main, number, rows) for number in range(4)]
    work = [Background(writer.run, stopped) for writer in writers] + [Background(churn, main, stopped)]
    stopped.wait(12)
    stopped.set()
    for thread in work:
        thread.join()
    expected = {key: value for writer in writers for key, value in writer.values.items()}
    assert sum(expected.values()) > 500
    assert stat(main, "hits") > 100 and stat(main, "evictions") > 100
    for _ in range(2):
        main.sql("SELECT clear_buffer_cache()")
        found = dict(main.sql("SELECT i, n FROM t"))
        assert {key: found[key] for key in expected} == expected and len(found) == 8 * rows
        main.restart()


def test_a_late_answer_does_not_replace_a_newer_page(neon_env_builder: NeonEnvBuilder, ports):
    """Who reads past the shared buffers gets the page as it was when it asked, and it may have been written since."""
    env = neon_env_builder.start()
    proxy = PagestreamProxy(ports.get(), env.pageserver.pg_port)
    address = f"postgresql://no_user:@127.0.0.1:{proxy.listener.getsockname()[1]}"
    settings = {"neon__pageserver_connstring": address, "neon__max_file_cache_size": "64MB", "autovacuum": "off"}
    main = env.endpoint("main").set(**settings).start()
    main.sql(*[f"CREATE EXTENSION {name}" for name in ("neon", "neon_test_utils", "pg_prewarm")])
    main.sql("CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)", "CHECKPOINT")
    here = "SELECT count(*) FROM local_cache WHERE relfilenode = pg_relation_filenode('t') AND relforknumber = 0"
    read, update = "SELECT pg_prewarm('t', 'read')", "UPDATE t SET n = n + 1"
    with main.cursor() as reader, main.cursor() as writer:
        # From now on both have what else they need, also a connection to the pageserver; the cache has nothing.
        set_limit(main, 0)
        reader.execute(read)
        writer.execute(update)
        writer.execute("CHECKPOINT")
        set_limit(main, 64)
        assert main.value(here) == 0
        proxy.reset()
        proxy.answering.clear()
        try:
            late = Background(reader.execute, read)
            processes.wait_until(lambda: proxy.requests > 0, "the page has been asked for")
            writer.execute(update)
            writer.execute("CHECKPOINT")
        finally:
            proxy.answering.set()
        late.join()
    assert main.value(here) == 1
    main.sql("SELECT clear_buffer_cache()")
    assert main.value("SELECT n FROM t") == 3
    proxy.close()


def test_reads_past_the_buffers_beside_writers(neon_env_builder: NeonEnvBuilder):
    """The same by chance, in a cache so small that what was written does not stay there either."""
    main = start(neon_env_builder, neon__max_file_cache_size="1MB")
    main.sql("CREATE EXTENSION pg_prewarm", "CREATE TABLE other AS SELECT repeat('x', 800) FROM generate_series(1, 3000)")
    main.sql("CREATE TABLE t (n int, v text)", "INSERT INTO t SELECT 0, repeat('v', 1500) FROM generate_series(1, 8)")
    stopped = threading.Event()

    def read():
        with main.cursor() as cursor:
            while not stopped.is_set():
                cursor.execute("SELECT pg_prewarm('other', 'read', 'main', 0, 250), pg_prewarm('t', 'read')")

    readers = [Background(read) for _ in range(2)]
    try:
        for n in range(1, 300):
            main.sql("UPDATE t SET n = n + 1", "SELECT clear_buffer_cache()")
            assert main.sql("SELECT min(n), max(n), count(*) FROM t") == [(n, n, 8)]
    finally:
        stopped.set()
    for reader in readers:
        reader.join()


# What happens to block 20 and others while the answers to requests for them are there, not read yet.
CHANGES = {
    "changed": ["UPDATE t SET n = -1 WHERE ctid = '(20,1)'"],
    "truncated": [
        "DELETE FROM t WHERE ctid >= '(20,1)'",
        "VACUUM (TRUNCATE) t",
        "INSERT INTO t SELECT -2, repeat('w', 700) FROM generate_series(1, 200)",
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_came_ahead_is_stored_unless_it_changed(neon_env_builder: NeonEnvBuilder, change: str):
    """Answers that have come are stored together, before they are read; an old version among them is not."""
    # Smaller than `other`, which pushes out what else is there.
    main = start(neon_env_builder, neon__max_file_cache_size="16MB")
    main.sql("CREATE EXTENSION pg_prewarm", "CREATE TABLE other (v text)", "CREATE TABLE t (n int, v text) WITH (fillfactor = 50)")
    main.sql("INSERT INTO other SELECT repeat('x', 800) FROM generate_series(1, 30000)")
    main.sql("INSERT INTO t SELECT i, repeat('v', 700) FROM generate_series(1, 250) i", "VACUUM (FREEZE) t")
    assert main.value("SELECT pg_relation_size('t') / 8192") >= 50
    forget = ["CHECKPOINT", "SELECT clear_buffer_cache()", "SELECT pg_prewarm('other', 'read')"]
    here = "SELECT relblocknumber FROM local_cache WHERE relfilenode = pg_relation_filenode('t') AND relforknumber = 0"
    main.sql(*forget)
    assert main.sql(here) == []
    with main.cursor() as reader:
        # Behind this are answers to requests for what comes next.
        reader.execute("SELECT pg_prewarm('t', 'read', 'main', 0, 15)")
        main.sql(*CHANGES[change], *forget)
        expected = main.sql("SELECT n FROM t ORDER BY n")
        main.sql(*forget)
        reader.execute("SELECT pg_prewarm('t', 'read', 'main', 16, 17)")
        assert (20,) not in main.sql(here)
    main.sql("SELECT clear_buffer_cache()")
    assert main.sql("SELECT n FROM t ORDER BY n") == expected


def test_a_read_only_compute_moves_on(neon_env_builder: NeonEnvBuilder):
    """Each start of it begins with an empty cache, also when its LSN was changed in between."""
    main = start(neon_env_builder)
    make_table(main, 20000)
    env, lsn = neon_env_builder.env, main.lsn()
    replica = env.endpoint("replica", branch="main", lsn=lsn)
    replica.set(shared_buffers="1MB", neon__max_file_cache_size="64MB").start()
    read = "SELECT v, count(*) FROM t GROUP BY v"
    assert replica.sql(read) == replica.sql(read) == [("x" * 200, 20000)]
    assert replica.value("SELECT hits FROM local_cache_stat") > 100
    main.sql("UPDATE t SET v = repeat('z', 200)")
    assert replica.sql(read) == [("x" * 200, 20000)]
    replica.stop().set(recovery_target_lsn=main.lsn()).start()
    assert replica.sql(read) == [("z" * 200, 20000)]
