"""Kinds of relations and of transactions, each with the answers that a stock server gives to the same statements."""

from contextlib import closing

import psycopg2
import pytest

from fixtures.neon_env import Endpoint, NeonEnvBuilder
from fixtures.stock import StockServer

SETTINGS = {
    "shared_buffers": "1MB",
    "autovacuum": "off",
    "wal_level": "logical",
    "max_worker_processes": "8",
    "max_parallel_maintenance_workers": "4",
    "min_parallel_table_scan_size": "0",
    "max_locks_per_transaction": "256",
}


class Peers:
    """Our compute and a stock server, which are told the same and must answer the same."""

    def __init__(self, ours: Endpoint, stock: StockServer):
        self.ours, self.stock = ours, stock

    def same(self, *statements: str) -> list[tuple]:
        """Runs the statements in one session on each server; the last one's rows, which must be the same."""
        answers = []
        for server in (self.ours, self.stock):
            with closing(psycopg2.connect(server.dsn())) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                for statement in statements:
                    cursor.execute(statement)
                answers.append(cursor.fetchall() if cursor.description else [])
        assert answers[0] == answers[1]
        return answers[0]

    def crash(self):
        """What unlogged relations do not survive; for a compute, every stop is that."""
        self.ours.restart()
        self.stock.stop("immediate")
        self.stock.start()


@pytest.fixture
def peers(neon_env_builder: NeonEnvBuilder, test_dir, ports):
    ours = neon_env_builder.start().endpoint("main").set(**SETTINGS).start()
    stock = StockServer(test_dir / "stock", ports.get(), **SETTINGS).init().start()
    yield Peers(ours, stock)
    stock.destroy()


def fill(table: str) -> str:
    return f"INSERT INTO {table} SELECT i, repeat('x', 100), ARRAY[i % 100] FROM generate_series(1, 10000) i"


COUNTS = "SELECT (SELECT count(*) FROM u), (SELECT count(*) FROM l), (SELECT count(*) FROM u WHERE a @> ARRAY[7])"


def test_unlogged_relations(peers: Peers):
    columns = "(i int PRIMARY KEY, v text, a int[])"
    peers.same(
        f"CREATE UNLOGGED TABLE u {columns}",
        f"CREATE TABLE l {columns}",
        "CREATE INDEX ON u USING gin (a)",
        "CREATE UNLOGGED SEQUENCE s",
        "CREATE UNLOGGED TABLE identity (i int GENERATED ALWAYS AS IDENTITY, v text)",
        fill("u"),
        fill("l"),
        "INSERT INTO identity (v) VALUES ('a'), ('b')",
    )
    peers.same("SELECT nextval('s'), nextval('s')")
    assert peers.same(COUNTS) == [(10000, 10000, 100)]
    # In an aborted transaction neither has changed its kind.
    peers.same("BEGIN", "ALTER TABLE u SET LOGGED", "ALTER TABLE l SET UNLOGGED", "DELETE FROM u WHERE i < 100", "ROLLBACK")
    assert peers.same(COUNTS) == [(10000, 10000, 100)]
    peers.same("CHECKPOINT")
    peers.crash()
    assert peers.same(COUNTS) == [(0, 10000, 0)]
    assert peers.same("SELECT nextval('s')") == [(1,)]
    assert peers.same("INSERT INTO identity (v) VALUES ('c') RETURNING i") == [(1,)]
    # Empty and usable, in both directions.
    peers.same(fill("u"), "ALTER TABLE u SET LOGGED", "ALTER TABLE l SET UNLOGGED", "CHECKPOINT")
    assert peers.same(COUNTS) == [(10000, 10000, 100)]
    peers.crash()
    assert peers.same(COUNTS) == [(10000, 0, 100)]
    peers.same("TRUNCATE u", fill("l"), "VACUUM FULL l", "REINDEX TABLE l", "CLUSTER l USING l_pkey")
    assert peers.same("SELECT count(*), sum(length(v)) FROM l WHERE i > 10") == [(9990, 999000)]
    peers.same("DROP TABLE u", "DROP TABLE l", "DROP TABLE identity", "DROP SEQUENCE s")
    peers.crash()
    assert peers.same("SELECT relname FROM pg_class WHERE relpersistence <> 'p'") == []


def test_temporary_relations(peers: Peers):
    counts = "SELECT (SELECT count(*) FROM x), (SELECT sum(i) FROM x WHERE i > 9000), (SELECT max(n) FROM y)"
    answer = peers.same(
        "SET temp_buffers = '800kB'",
        "CREATE TEMP TABLE x (i int PRIMARY KEY, v text, a int[]) ON COMMIT PRESERVE ROWS",
        fill("x"),
        "CREATE INDEX ON x USING gin (a)",
        "CREATE TEMP SEQUENCE seq",
        "CREATE TEMP TABLE y AS SELECT nextval('seq') n FROM x",
        "BEGIN",
        "CREATE TEMP TABLE z ON COMMIT DROP AS SELECT * FROM x",
        "SAVEPOINT a",
        "TRUNCATE x",
        "ROLLBACK TO a",
        "COMMIT",
        "UPDATE x SET v = 'y' WHERE i % 2 = 0",
        "VACUUM x",
        "DELETE FROM x WHERE i <= 100",
        counts,
    )
    assert answer[0][0] == 9900
    assert peers.same("SELECT count(*) FROM pg_class WHERE relname IN ('x', 'y', 'z', 'seq')") == [(0,)]
    # Their files go with the session.
    assert list((peers.ours.dir / "base").glob("*/t[0-9]*")) == []


def test_ten_thousand_savepoints(peers: Peers):
    nested = "DO $$ BEGIN FOR n IN 1..10000 LOOP BEGIN INSERT INTO t VALUES (n); IF n % 3 = 0 THEN RAISE 'x'; END IF; EXCEPTION WHEN raise_exception THEN END; END LOOP; END $$"
    answer = peers.same(
        "CREATE TABLE t (i int)",
        "BEGIN",
        nested,
        "SAVEPOINT s",
        "INSERT INTO t VALUES (-1)",
        "ROLLBACK TO s",
        "SELECT count(*), sum(i), count(DISTINCT xmin::text) FROM t",
        "COMMIT",
        "SELECT count(*), sum(i) FROM t",
    )
    assert answer[0][0] == 6667
    # By name, each within the one before, which overflows what a snapshot holds of subtransactions.
    deep = ["BEGIN", *(f"SAVEPOINT s{n}; INSERT INTO t VALUES ({n})" for n in range(2000)), "ROLLBACK TO s1000", "COMMIT"]
    peers.same(*deep)
    assert peers.same("SELECT count(*) FROM t") == [(7667,)]
    peers.crash()
    assert peers.same("SELECT count(*) FROM t") == [(7667,)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_partitions(peers: Peers):
    create = "DO $$ BEGIN FOR n IN %s LOOP EXECUTE format('CREATE TABLE p%%s PARTITION OF p FOR VALUES IN (%%s)', n, n); END LOOP; END $$"
    peers.same("CREATE TABLE p (k int, v text, PRIMARY KEY (k, v)) PARTITION BY LIST (k)")
    for first in range(0, 1000, 250):
        peers.same(create % f"{first}..{first + 249}")
    peers.same("INSERT INTO p SELECT i % 1000, md5(i::text) FROM generate_series(1, 10000) i")
    check = "SELECT count(*), count(DISTINCT tableoid), md5(string_agg(v, '' ORDER BY v)) FROM p"
    assert peers.same(check)[0][:2] == (10000, 1000)
    peers.same("ALTER TABLE p DETACH PARTITION p7", "DROP TABLE p7", "TRUNCATE p8, p9", "UPDATE p SET k = 11 WHERE k = 10")
    expected = peers.same(check)
    assert expected[0][:2] == (9970, 996)
    peers.crash()
    assert peers.same(check) == expected
    peers.same("SET max_parallel_workers_per_gather = 0", "DELETE FROM p WHERE k % 2 = 0", "SELECT count(*) FROM p")
    peers.same("DROP TABLE p")
    assert peers.same("SELECT count(*) FROM pg_class WHERE relname LIKE 'p%' AND relnamespace = 2200") == [(0,)]


def test_logical_decoding(peers: Peers):
    changes = "SELECT regexp_replace(data, '^(BEGIN|COMMIT) .*', '\\1') FROM pg_logical_slot_get_changes('slot', NULL, NULL)"
    peers.same(
        "CREATE TABLE t (i int PRIMARY KEY, v text)",
        "CREATE TABLE big (i int, v text)",
        "ALTER TABLE big REPLICA IDENTITY FULL",
        "SELECT slot_name FROM pg_create_logical_replication_slot('slot', 'test_decoding')",
    )
    peers.same("INSERT INTO t VALUES (1, 'a'), (2, 'b')", "UPDATE t SET v = 'c' WHERE i = 1", "DELETE FROM t WHERE i = 2")
    peers.same("BEGIN", "INSERT INTO t VALUES (3, 'x')", "SAVEPOINT s", "INSERT INTO t VALUES (4, 'y')", "ROLLBACK TO s", "COMMIT")
    # Decoding spills what does not fit; toasted values; a table that is written anew; a change of its columns.
    peers.same("INSERT INTO big SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 300) i", "ALTER TABLE t ADD w int DEFAULT 1")
    peers.same("UPDATE big SET i = i + 1 WHERE i < 10", "VACUUM FULL big", "UPDATE t SET w = 2", "TRUNCATE big")
    rows = peers.same(changes)
    assert len(rows) > 320 and ("table public.t: UPDATE: i[integer]:1 v[text]:'c' w[integer]:2",) in rows
    assert peers.same(changes) == []


@pytest.mark.parametrize("persistence", ["", "UNLOGGED"])
def test_parallel_index_builds(peers: Peers, persistence: str):
    peers.same(
        f"CREATE {persistence} TABLE t (i int, v text) WITH (parallel_workers = 4)",
        "INSERT INTO t SELECT i % 1000, md5(i::text) FROM generate_series(1, 60000) i",
        "SET maintenance_work_mem = '64MB'",
        "CREATE INDEX t_i ON t (i)",
        "CREATE UNIQUE INDEX t_v ON t (v)",
        "CREATE INDEX t_partial ON t (v) WHERE i < 10",
        "CREATE EXTENSION amcheck",
        "SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = 't'::regclass",
    )
    by_index = "SET enable_seqscan = off; SELECT count(*), min(v), max(v) FROM t WHERE i = 77"
    assert peers.same(by_index)[0][0] == 60
    peers.same("REINDEX TABLE CONCURRENTLY t", "UPDATE t SET i = i + 1 WHERE i < 100")
    peers.same("SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = 't'::regclass")
    assert peers.same("SELECT pg_relation_size('t_v')")[0][0] > 1_000_000
    if not persistence:
        peers.crash()
        peers.same("SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = 't'::regclass")
