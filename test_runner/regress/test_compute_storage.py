"""What becomes of pages that leave shared buffers: each hazard that docs/compute.md names."""

import pytest

from fixtures.neon_env import Endpoint, NeonEnvBuilder


@pytest.fixture
def main(neon_env_builder: NeonEnvBuilder) -> Endpoint:
    """A compute with little memory, and the test extension in it."""
    env = neon_env_builder.start()
    main = env.endpoint("main").set(shared_buffers="1MB", autovacuum="off").start()
    main.sql("CREATE EXTENSION neon_test_utils")
    return main


def evict(main: Endpoint):
    main.sql("SELECT clear_buffer_cache()")


def test_all_visible_flag_survives_eviction(main: Endpoint):
    """VACUUM sets it without advancing the page's LSN. Lost, the next DELETE would not clear the map."""
    main.set(shared_buffers="8MB").restart()
    main.sql("CREATE EXTENSION pageinspect", "CREATE EXTENSION pg_visibility")
    main.sql("CREATE TABLE t (i int)", "INSERT INTO t SELECT generate_series(1, 5000)")
    pages = main.value("SELECT pg_relation_size('t') / 8192")
    flags = "SELECT count(*) FROM generate_series(0, %s) b, page_header(get_raw_page('t', b::int)) WHERE flags & 4 <> 0"
    assert main.value(flags % (pages - 1)) == 0
    with main.cursor() as cursor:
        # The pageserver has the pages, but gets nothing more for now: whoever reads them at the pages' own LSN finds no flags.
        main.env.pageserver.http().failpoints(**{"walreceiver-after-ingest": "1*sleep(8000)"})
        cursor.execute("INSERT INTO t VALUES (0)")
        cursor.execute("VACUUM t")
        # Once before, so that the session has what it needs of the catalogs, whose pages have to be waited for.
        cursor.execute(flags % (pages - 1))
        cursor.execute("SELECT clear_buffer_cache()")
        cursor.execute(flags % (pages - 1))
        assert cursor.fetchall() == [(pages,)]
    main.sql("DELETE FROM t WHERE i % 100 = 0")
    evict(main)
    assert main.sql("SELECT * FROM pg_check_visible('t')") == []
    assert main.value("SET enable_seqscan = off; SELECT count(*) FROM t") == 4950


def test_a_cursor_does_not_see_later_commands(main: Endpoint):
    """Which command made or deleted a row is not in the WAL: a page made from that would show what came after DECLARE."""
    main.sql("CREATE TABLE t (i int)")
    with main.cursor() as cursor:
        cursor.execute("BEGIN")
        for i in range(3):
            cursor.execute(f"INSERT INTO t VALUES ({i})")
        cursor.execute("DECLARE before CURSOR FOR SELECT i FROM t ORDER BY i")
        cursor.execute("UPDATE t SET i = i + 10 WHERE i = 0")
        cursor.execute("DELETE FROM t WHERE i = 1")
        cursor.execute("INSERT INTO t VALUES (20)")
        cursor.execute("SELECT i FROM t ORDER BY i FOR UPDATE")
        cursor.execute("SELECT clear_buffer_cache()")
        cursor.execute("FETCH ALL FROM before")
        assert cursor.fetchall() == [(0,), (1,), (2,)]
        cursor.execute("SELECT i FROM t ORDER BY i")
        assert cursor.fetchall() == [(2,), (10,), (20,)]
        cursor.execute("COMMIT")
    evict(main)
    assert main.sql("SELECT i FROM t ORDER BY i") == [(2,), (10,), (20,)]


def test_an_update_does_not_meet_its_own_rows(main: Endpoint):
    """New versions go to free pages further on, are evicted, and are come across by the same scan."""
    main.sql("CREATE TABLE t (i int, n int, v text)")
    main.sql("INSERT INTO t SELECT i, 0, repeat('x', 200) FROM generate_series(1, 60000) i")
    main.sql("DELETE FROM t WHERE i BETWEEN 20001 AND 59999", "VACUUM t")
    with main.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("CREATE TABLE other (i int)")
        cursor.execute("UPDATE t SET n = n + 1")
        assert cursor.rowcount == 20001
        cursor.execute("COMMIT")
    assert main.sql("SELECT n, count(*) FROM t GROUP BY n") == [(1, 20001)]


def test_pages_kept_for_a_transaction_go_when_read_after_it(main: Endpoint):
    """They must not fill the compute's disk: the first reader notes on them that it has ended, so they are evicted anew."""
    main.sql("CREATE TABLE t (i int, v text)")
    file = main.dir / main.value("SELECT pg_relation_filepath('t')")

    def kept() -> int:
        return file.stat().st_blocks * 512

    content = "SELECT count(*), sum(i), count(DISTINCT v) FROM t"
    with main.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO t VALUES (0, '')")
        cursor.execute("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 20000) i")
        cursor.execute(content)
        expected = cursor.fetchall()
        size = main.value("SELECT pg_relation_size('t')")
        assert kept() > size / 2
        cursor.execute("SAVEPOINT s")
        cursor.execute("UPDATE t SET v = 'y' WHERE i < 100")
        cursor.execute("ROLLBACK TO s")
        cursor.execute("COMMIT")
    # What is in shared buffers now is evicted to where it belongs.
    evict(main)
    assert main.sql(content) == expected
    evict(main)
    assert kept() < size / 20
    assert main.sql(content) == expected
    main.restart()
    assert main.sql(content) == expected


def test_visibility_map_is_never_stale(main: Endpoint):
    """Its bits are cleared without an LSN on the map's page."""
    main.sql("CREATE TABLE t (i int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 5000)", "VACUUM t")
    main.sql("CREATE EXTENSION pg_visibility")
    for i in range(1, 20):
        evict(main)
        main.sql(f"DELETE FROM t WHERE i = {i * 250}")
        evict(main)
        assert main.sql("SELECT * FROM pg_check_visible('t')") == []
        only_index = "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM t WHERE i > 0"
        assert main.value(only_index) == 5000 - i
    main.sql("VACUUM t")
    main.restart()
    assert main.sql("SELECT * FROM pg_check_visible('t')") == []


def test_free_space_map_outlives_the_compute(main: Endpoint):
    main.sql("CREATE EXTENSION pg_freespacemap")
    main.sql("CREATE TABLE t (i int, v text)", "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i")
    main.sql("DELETE FROM t WHERE i % 2 = 0", "VACUUM t")
    free = "SELECT sum(avail) FROM pg_freespace('t')"
    before = main.value(free)
    assert before > 100_000
    evict(main)
    assert main.value(free) == before
    main.restart()
    assert main.value(free) == before


def test_sequences_skip_nothing(main: Endpoint):
    main.sql("CREATE SEQUENCE s", "CREATE UNLOGGED SEQUENCE u")
    for i in range(1, 5):
        assert main.value("SELECT nextval('s')") == i
        assert main.value("SELECT nextval('u')") == i
        evict(main)
    assert main.value("SELECT log_cnt FROM s") == 29
    main.restart()
    assert main.value("SELECT nextval('s')") == 5
    assert main.value("SELECT nextval('u')") == 1, "an unlogged sequence starts anew"
    assert main.value("SELECT nextval('s')") == 6
    # After a crash values may be skipped, but none may come twice.
    main.kill()
    main.start()
    assert main.value("SELECT nextval('s')") > 6


INDEXES = {
    "btree": ("(v)", "v = '%(x)s'"),
    "hash": ("(v)", "v = '%(x)s'"),
    "gin": ("(a)", "a @> '{%(n)s}'"),
    "gist": ("(p)", "p <@ circle(point(%(n)s, %(n)s), 0.5)"),
    "spgist": ("(p)", "p <@ box(point(%(n)s, %(n)s), point(%(n)s, %(n)s))"),
    "brin": ("(i)", "i = %(n)s"),
}


@pytest.mark.parametrize("method", INDEXES)
@pytest.mark.parametrize("persistence", ["", "UNLOGGED"])
def test_index_built_with_less_memory_than_it_has_pages(main: Endpoint, method: str, persistence: str):
    """Its pages are evicted before any record describes them."""
    columns, condition = INDEXES[method]
    main.sql(
        f"CREATE {persistence} TABLE t (i int, v text, a int[], p point)",
        "INSERT INTO t SELECT i, md5((i % 9000)::text), ARRAY[i % 9000, -1 - i % 7], point(i % 9000, i % 9000)"
        " FROM generate_series(1, 18000) i",
        f"CREATE INDEX idx ON t USING {method} {columns}",
    )
    if method != "brin":
        assert main.value("SELECT pg_relation_size('idx')") > 400_000

    def check(expected: int):
        for n in (1, 77, 8999):
            x = main.value(f"SELECT md5('{n}')")
            query = f"SET enable_seqscan = %s; SELECT count(*) FROM t WHERE {condition % {'n': n, 'x': x}}"
            by_index, by_scan = main.value(query % "off"), main.value(query % "on")
            assert by_index == by_scan == (expected if method != "brin" else min(expected, 1))

    check(2)
    evict(main)
    check(2)
    main.sql("UPDATE t SET i = i WHERE i % 3 = 0", "VACUUM t")
    check(2)
    main.restart()
    check(0 if persistence else 2)


def test_unlogged_and_temporary_relations(main: Endpoint):
    main.sql("CREATE UNLOGGED TABLE u (i int PRIMARY KEY, v text)")
    main.sql("INSERT INTO u SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
    evict(main)
    assert main.value("SELECT sum(length(v)) FROM u") == 2_000_000
    main.sql("ALTER TABLE u SET LOGGED", "CREATE TABLE l AS SELECT * FROM u", "ALTER TABLE l SET UNLOGGED")
    evict(main)
    assert main.sql("SELECT (SELECT count(*) FROM u), (SELECT count(*) FROM l)") == [(20000, 20000)]
    with main.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE x AS SELECT * FROM u; CREATE INDEX ON x (i); SELECT count(*) FROM x")
        assert cursor.fetchall() == [(20000,)]
    main.restart()
    assert main.sql("SELECT (SELECT count(*) FROM u), (SELECT count(*) FROM l)") == [(20000, 0)]


def test_nothing_of_an_aborted_transaction_is_left(main: Endpoint):
    with main.cursor(autocommit=False) as cursor:
        cursor.execute("CREATE TABLE gone (a int[]); INSERT INTO gone SELECT ARRAY[i] FROM generate_series(1, 20000) i")
        cursor.execute("CREATE INDEX ON gone USING gin (a); SELECT pg_relation_filepath('gone')")
        ((path,),) = cursor.fetchall()
        cursor.connection.rollback()
    main.sql("CHECKPOINT")
    assert not (main.dir / path).exists()
    assert main.value("SELECT count(*) FROM pg_class WHERE relname = 'gone'") == 0


def test_sizes_are_seen_by_all_and_kept(main: Endpoint):
    main.sql("CREATE TABLE t (v text)")
    with main.cursor() as writer, main.cursor() as reader:
        for n in range(1, 6):
            writer.execute("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
            reader.execute("SELECT count(*), pg_relation_size('t') FROM t")
            ((rows, size),) = reader.fetchall()
            assert rows == n * 1000 and size >= rows * 1000
    sizes = "SELECT pg_relation_size('t'), pg_table_size('t'), pg_total_relation_size('t'), pg_relation_size('t', 'vm')"
    main.sql("VACUUM t")
    before = main.sql(sizes)
    assert main.value("SELECT pg_database_size('postgres')") > before[0][0]
    assert main.value("SELECT pg_tablespace_size('pg_default')") > before[0][0]
    main.restart()
    assert main.sql(sizes) == before
    main.sql("DELETE FROM t", "VACUUM t")
    assert main.value("SELECT pg_relation_size('t')") == 0
    main.restart()
    assert main.value("SELECT pg_relation_size('t')") == 0
    assert main.value("SELECT pg_relation_size(4294967295::oid)") is None


@pytest.mark.parametrize("strategy", ["wal_log", "file_copy"])
def test_create_database(main: Endpoint, strategy: str):
    main.sql("CREATE DATABASE source")
    main.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) i", "CREATE INDEX ON t (i)", dbname="source")
    main.sql("CREATE SEQUENCE s", "SELECT nextval('s')", "CREATE UNLOGGED TABLE u AS SELECT 1", dbname="source")
    main.sql(f"CREATE DATABASE copy TEMPLATE source STRATEGY {strategy}")
    for _ in range(2):
        assert main.value("SELECT count(*) FROM t", dbname="copy") == 10000
        assert main.value("SET enable_seqscan = off; SELECT i FROM t WHERE i = 77", dbname="copy") == 77
        main.sql("INSERT INTO t VALUES (0); DELETE FROM t WHERE i = 0", dbname="copy")
        assert main.value("SELECT count(*) FROM t", dbname="source") == 10000
        main.restart()
    main.sql("DROP DATABASE copy")
    assert main.value("SELECT count(*) FROM t", dbname="source") == 10000


def test_tablespace(main: Endpoint):
    main.sql("SET allow_in_place_tablespaces = on", "CREATE TABLESPACE ts LOCATION ''")
    main.sql("CREATE TABLE t TABLESPACE ts AS SELECT generate_series(1, 1000) i")
    with pytest.raises(Exception, match="is not empty"):
        main.sql("DROP TABLESPACE ts")
    evict(main)
    assert main.value("SELECT count(*) FROM t") == 1000
    main.sql("ALTER TABLE t SET TABLESPACE pg_default", "DROP TABLESPACE ts")
    assert main.value("SELECT count(*) FROM t") == 1000


def test_pages_of_the_pageserver_and_of_the_compute_agree(main: Endpoint):
    """Byte by byte but for hint bits, which a table that was just written does not have."""
    main.sql("CREATE EXTENSION pageinspect", "CREATE TABLE t AS SELECT i, repeat('x', 100) v FROM generate_series(1, 3000) i")
    main.sql("CREATE INDEX idx ON t (i)")
    for rel in ("idx",):
        pages = main.value(f"SELECT pg_relation_size('{rel}') / 8192")
        different = (
            f"SELECT count(*) FROM generate_series(0, {pages - 1}) b"
            f" WHERE get_raw_page('{rel}', b::int) <> get_raw_page_at_lsn('{rel}', 'main', b, NULL)"
        )
        assert pages > 5 and main.value(different) == 0
    lsn = main.lsn()
    old = main.value(f"SELECT get_raw_page_at_lsn('t', 'main', 0, '{lsn}')")
    main.sql("UPDATE t SET i = -i")
    assert main.value(f"SELECT get_raw_page_at_lsn('t', 'main', 0, '{lsn}')") == old
    assert main.value("SELECT get_raw_page_at_lsn('t', 'main', 0, NULL)") != old


def test_more_relations_than_the_size_cache_holds(neon_env_builder: NeonEnvBuilder):
    """Forks whose entries were pushed out are asked for again. Their maps, in memory still, are in no WAL record yet."""
    env = neon_env_builder.start()
    main = env.endpoint("main").set(shared_buffers="64MB", autovacuum="off", neon__relsize_hash_size="1024").start()
    tables = 700
    with main.cursor() as cursor:
        for n in range(tables):
            cursor.execute(f"CREATE TABLE t{n} (i serial PRIMARY KEY, v text)")
            cursor.execute(f"INSERT INTO t{n} (v) SELECT 'x' FROM generate_series(1, {n % 5 + 1})")
        cursor.execute("VACUUM")
        for n in range(tables):
            cursor.execute(f"INSERT INTO t{n} (v) VALUES ('y')")
            if n % 7 == 0:
                cursor.execute(f"DROP TABLE t{n}")
        cursor.execute("VACUUM")
    left = [n for n in range(tables) if n % 7]
    for _ in range(2):
        with main.cursor() as cursor:
            for n in left:
                cursor.execute(f"SELECT count(*), pg_relation_size('t{n}'), max(i) FROM t{n}")
                assert cursor.fetchall() == [(n % 5 + 2, 8192, n % 5 + 2)], n
        main.restart()
