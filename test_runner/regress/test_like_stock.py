"""The same statements on our compute and on a stock server, both with 1 MB of buffers: the same answers, also after a restart."""

import contextlib
import dataclasses

import psycopg2
import pytest

from fixtures.neon_env import Endpoint, NeonEnv
from fixtures.ports import PortDistributor
from fixtures.stock import StockServer

SETTINGS = {"shared_buffers": "1MB", "max_prepared_transactions": 10, "autovacuum": "off"}


@dataclasses.dataclass
class Pair:
    """Both servers."""

    ours: Endpoint
    stock: StockServer

    def same(self, *statements: str) -> list:
        """Runs statements one after the other on both; fails unless all answers are the same. The answers."""
        answers = []
        for dsn in (self.ours.dsn(), self.stock.dsn()):
            with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                answers.append([answer(cursor, statement) for statement in statements])
        for statement, ours, stock in zip(statements, *answers, strict=True):
            assert ours == stock, statement
        return answers[0]

    def restart(self):
        self.ours.restart()
        self.stock.stop()
        self.stock.start()


def answer(cursor, statement: str):
    """Rows, or the error's text and code."""
    try:
        cursor.execute(statement)
    except psycopg2.Error as error:
        return (error.pgcode, error.diag.message_primary)
    return cursor.fetchall() if cursor.description else cursor.statusmessage


@pytest.fixture
def pair(neon_simple_env: NeonEnv, test_dir, ports: PortDistributor):
    stock = StockServer(test_dir / "stock", ports.get(), **SETTINGS).init().start()
    yield Pair(neon_simple_env.endpoint("main").set(**SETTINGS).start(), stock)
    stock.destroy()


# Each index is several MB, its table too. The query counts what the index alone finds.
ACCESS_METHODS = {
    "btree": ("md5(i::text)", "v BETWEEN '1' AND '2'"),
    "hash": ("i % 5000", "v = 4711"),
    "gin": ("ARRAY[i % 1000, i % 777]", "v @> ARRAY[5]"),
    "gist": ("point(i % 1009, i / 97)", "v <@ box '((10,10),(300,300))'"),
    "spgist": ("point(i % 1009, i / 97)", "v <@ box '((10,10),(300,300))'"),
    "brin": ("i", "v BETWEEN 777 AND 1234"),
}


@pytest.mark.parametrize("method", ACCESS_METHODS)
def test_index_larger_than_memory(pair: Pair, method: str):
    value, condition = ACCESS_METHODS[method]
    count = f"SELECT count(*), sum(i) FROM t WHERE {condition}"
    no_scan = "SET enable_seqscan = off"
    changes = ("UPDATE t SET i = i + 1 WHERE i % 7 = 0", "DELETE FROM t WHERE i % 5 = 0", "VACUUM t")
    before = pair.same(
        f"CREATE TABLE t AS SELECT i, {value} AS v FROM generate_series(1, 60000) i",
        f"CREATE INDEX x ON t USING {method} (v)",
        no_scan,
        count,
        f"INSERT INTO t SELECT i, {value} FROM generate_series(60001, 80000) i",
        *changes,
        count,
    )
    assert before[-1][0][0] > 0
    pair.restart()
    pair.same(no_scan, count, "REINDEX INDEX CONCURRENTLY x", count, "SELECT pg_relation_size('x') > 0")
    # The index against the table.
    pair.same("SET enable_indexscan = off", "SET enable_bitmapscan = off", count)


def test_large_objects(pair: Pair):
    create = "SELECT lo_from_bytea(424242, string_agg(decode(md5(i::text), 'hex'), '')) FROM generate_series(1, 20000) i"
    check = "SELECT md5(lo_get(424242)), md5(lo_get(424242, 100000, 5000)), length(lo_get(424242))"
    pair.same(create, check, "SELECT lo_put(424242, 150000, 'in the middle')", check)
    pair.restart()
    pair.same(check, "SELECT count(*) FROM pg_largeobject", "SELECT lo_unlink(424242)", check)


def test_two_phase_transactions(pair: Pair):
    rows = "SELECT * FROM t ORDER BY a"
    prepared = "SELECT gid, owner, database FROM pg_prepared_xacts ORDER BY 1"
    pair.same("CREATE TABLE t (a int PRIMARY KEY, b text)", "INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    for gid, change in {
        "insert": "INSERT INTO t VALUES (3, 'z')",
        "update": "UPDATE t SET b = 'changed' WHERE a = 1",
        "ddl": "CREATE TABLE u AS SELECT 1 AS x",
        "subxact": "SAVEPOINT s; INSERT INTO t VALUES (4, 's'); ROLLBACK TO s; INSERT INTO t VALUES (5, 't')",
    }.items():
        pair.same("BEGIN", change, f"PREPARE TRANSACTION '{gid}'")
    for _ in range(2):
        pair.restart()
        pair.same(prepared, rows, "SET lock_timeout = '100ms'", "UPDATE t SET b = 'blocked' WHERE a = 1")
    pair.same("COMMIT PREPARED 'insert'", "ROLLBACK PREPARED 'update'", rows)
    pair.restart()
    pair.same("COMMIT PREPARED 'ddl'", "COMMIT PREPARED 'subxact'", "ROLLBACK PREPARED 'insert'", prepared, rows)
    pair.restart()
    pair.same(prepared, rows, "TABLE u", "UPDATE t SET b = 'free' WHERE a = 1", rows)


def test_rows_locked_by_many(pair: Pair):
    """Multixacts, of which each round of lockers makes new ones."""
    pair.same("CREATE TABLE p (a int PRIMARY KEY)", "INSERT INTO p SELECT generate_series(1, 50)")
    pair.same("CREATE TABLE c (a int REFERENCES p)")
    for _ in range(3):
        for dsn in (pair.ours.dsn(), pair.stock.dsn()):
            lockers = [psycopg2.connect(dsn) for _ in range(4)]
            for number, locker in enumerate(lockers):
                strength = ("FOR KEY SHARE", "FOR SHARE")[number % 2]
                locker.cursor().execute(f"SELECT * FROM p {strength}")
            for locker in lockers:
                locker.cursor().execute("INSERT INTO c SELECT generate_series(1, 50)")
                locker.commit()
                locker.close()
        pair.restart()
        pair.same("SELECT count(*) FROM c", "UPDATE p SET a = a", "SELECT sum(a) FROM p", "SELECT count(*) FROM p FOR UPDATE")
    pair.same("DELETE FROM p WHERE a = 7", "VACUUM FREEZE p", "VACUUM FREEZE c", "SELECT count(*) FROM p")


def test_tables_written_anew(pair: Pair):
    content = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY i)) FROM t"
    order = "SELECT array_agg(i) FROM (SELECT i FROM t LIMIT 20) x"
    pair.same(
        "CREATE TABLE t AS SELECT i, md5(i::text) AS m, repeat(md5((i * 7)::text), 50) AS long FROM generate_series(1, 8000) i",
        "CREATE UNIQUE INDEX x ON t (i)",
        "CREATE INDEX y ON t (m)",
        "CREATE MATERIALIZED VIEW v AS SELECT i % 100 AS k, count(*) FROM t GROUP BY 1",
        "CREATE UNIQUE INDEX z ON v (k)",
        "DELETE FROM t WHERE i % 3 = 0",
    )
    for statement in (
        "VACUUM FULL t",
        "CLUSTER t USING y",
        "REINDEX TABLE CONCURRENTLY t",
        "ALTER TABLE t ALTER COLUMN i TYPE bigint",
        "ALTER TABLE t SET UNLOGGED",
        "ALTER TABLE t SET LOGGED",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
    ):
        pair.same(statement, content, order, "SELECT sum(count) FROM v")
    pair.restart()
    pair.same(content, order, "SELECT sum(count) FROM v", "REFRESH MATERIALIZED VIEW v", "SELECT sum(count) FROM v")
    pair.same("TRUNCATE t", content, "INSERT INTO t VALUES (1, 'a', 'b')", content)


def test_advisory_locks_and_notifications(pair: Pair):
    heard = []
    for dsn in (pair.ours.dsn(), pair.stock.dsn()):
        with contextlib.closing(psycopg2.connect(dsn)) as one, contextlib.closing(psycopg2.connect(dsn)) as two:
            one.autocommit = two.autocommit = True
            listener, speaker = one.cursor(), two.cursor()
            listener.execute("LISTEN channel")
            listener.execute("SELECT pg_advisory_lock(42)")
            speaker.execute("SELECT pg_try_advisory_lock(42), pg_try_advisory_lock(43)")
            locks = speaker.fetchone()
            speaker.execute("BEGIN; NOTIFY channel, 'first'; SAVEPOINT s; NOTIFY channel, 'lost'; ROLLBACK TO s; COMMIT")
            speaker.execute("SELECT pg_notify('channel', repeat('x', 7000) || i) FROM generate_series(1, 20) i")
            listener.execute("SELECT 1")
            heard.append((locks, [notify.payload for notify in one.notifies]))
    assert heard[0] == heard[1]
    assert heard[0][0] == (False, True) and len(heard[0][1]) == 21


def test_extensions_that_look_at_pages(pair: Pair):
    pair.same(*[f"CREATE EXTENSION {name}" for name in ("pageinspect", "pg_buffercache", "pg_prewarm", "pg_visibility", "amcheck")])
    pair.same(
        "CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 5000) i",
        "CREATE INDEX x ON t (m)",
        "VACUUM t",
        "SELECT pg_prewarm('t', 'buffer'), pg_prewarm('x', 'read')",
        "SELECT count(*) > 0 FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('t')",
        "SELECT lp, t_ctid, t_data FROM heap_page_items(get_raw_page('t', 3))",
        "SELECT type, live_items, dead_items FROM bt_page_stats('x', 1)",
        "SELECT all_visible, all_frozen, count(*) FROM pg_visibility_map('t') GROUP BY 1, 2",
        "SELECT bt_index_check('x', true)",
        "SELECT pg_relation_size('t'), pg_table_size('t'), pg_indexes_size('t'), pg_total_relation_size('t')",
    )
    pair.restart()
    pair.same(
        "SELECT lp, t_ctid, t_data FROM heap_page_items(get_raw_page('t', 3))",
        "SELECT all_visible, all_frozen, count(*) FROM pg_visibility_map('t') GROUP BY 1, 2",
        "SELECT pg_prewarm('t', 'prefetch'), pg_prewarm('t')",
        "SELECT bt_index_parent_check('x', true, true)",
    )


def test_foreign_tables(pair: Pair):
    """They have no storage, and ANALYZE asks for the size of a map of it."""
    pair.same(
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        "CREATE FOREIGN TABLE f (word text) SERVER files OPTIONS (program 'seq 1000')",
        "ANALYZE f",
        "SELECT reltuples, relpages, relallvisible FROM pg_class WHERE relname = 'f'",
        "SELECT pg_relation_size('f'), pg_total_relation_size('f')",
        "SELECT count(*), sum(word::int) FROM f",
    )
