"""Tablespaces: what is in them outlives the compute, and commands that look at directories see it."""

import os
import shutil
from pathlib import Path

import psycopg2
import pytest

from fixtures.neon_env import Endpoint, NeonEnvBuilder
from fixtures.stock import ACCOUNT, StockServer

IN_PLACE = ("SET allow_in_place_tablespaces = on", "CREATE TABLESPACE ts LOCATION ''")


@pytest.fixture
def main(neon_env_builder: NeonEnvBuilder) -> Endpoint:
    main = neon_env_builder.start().endpoint("main").set(shared_buffers="1MB", autovacuum="off").start()
    main.sql("CREATE EXTENSION neon_test_utils")
    return main


def fill(main: Endpoint, name: str, tablespace: str, persistence: str = "", dbname: str = "postgres"):
    main.sql(
        f"CREATE {persistence} TABLE {name} (i int PRIMARY KEY USING INDEX TABLESPACE {tablespace}, v text)"
        f" TABLESPACE {tablespace}",
        f"INSERT INTO {name} SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i",
        dbname=dbname,
    )


def check(main: Endpoint, name: str, dbname: str = "postgres", rows: int = 5000):
    assert main.sql(f"SELECT count(*), sum(length(v)) FROM {name}", dbname=dbname) == [(rows, rows * 200 or None)]
    by_index = f"SET enable_seqscan = off; SELECT count(*) FROM {name} WHERE i BETWEEN 1000 AND 1999"
    assert main.value(by_index, dbname=dbname) == (1000 if rows else 0)


def refused(main: Endpoint, statement: str, why: str, dbname: str = "postgres"):
    with pytest.raises(psycopg2.Error, match=why):
        main.sql(statement, dbname=dbname)


def test_drop_tablespace_sees_what_is_in_it(main: Endpoint):
    """Files say whether it is empty: those of relations that an earlier compute made as well."""
    main.sql(*IN_PLACE)
    fill(main, "t", "ts")
    fill(main, "u", "ts", "UNLOGGED")
    main.sql("CREATE TABLE empty (i int) TABLESPACE ts")
    for restart in (False, True):
        if restart:
            main.restart()
        refused(main, "DROP TABLESPACE ts", "is not empty")
        check(main, "t")
        check(main, "u", rows=0 if restart else 5000)
    main.sql("DROP TABLE u", "DROP TABLE t")
    main.restart()
    refused(main, "DROP TABLESPACE ts", "is not empty")
    main.sql("INSERT INTO empty VALUES (1)", "DROP TABLE empty", "DROP TABLESPACE ts")
    main.restart()
    assert main.value("SELECT count(*) FROM pg_tablespace") == 2
    assert list((main.dir / "pg_tblspc").iterdir()) == []


def test_table_moves_between_tablespaces(main: Endpoint):
    main.sql(*IN_PLACE)
    fill(main, "t", "pg_default")
    main.sql("ALTER TABLE t SET TABLESPACE ts", "ALTER INDEX t_pkey SET TABLESPACE ts", "SELECT clear_buffer_cache()")
    check(main, "t")
    main.restart()
    check(main, "t")
    main.sql("UPDATE t SET v = repeat('y', 200)", "VACUUM t")
    main.sql("ALTER TABLE t SET TABLESPACE pg_default", "ALTER INDEX t_pkey SET TABLESPACE pg_default", "DROP TABLESPACE ts")
    check(main, "t")
    main.restart()
    check(main, "t")


@pytest.mark.parametrize("strategy", ["wal_log", "file_copy"])
def test_databases_in_tablespaces(main: Endpoint, strategy: str):
    main.sql(*IN_PLACE, "CREATE DATABASE db TABLESPACE ts STRATEGY " + strategy)
    fill(main, "t", "pg_default", dbname="db")
    fill(main, "u", "pg_default", "UNLOGGED", dbname="db")
    fill(main, "s", "ts", dbname="db")
    check(main, "t", dbname="db")
    main.restart()
    check(main, "t", dbname="db")
    refused(main, "DROP TABLESPACE ts", "is not empty")
    # `t` is in the other tablespace already, and cannot be moved along; what is in files and what is not, both count.
    refused(main, "ALTER DATABASE db SET TABLESPACE pg_default", "some relations of database")
    main.sql("ALTER TABLE t SET TABLESPACE ts", "ALTER TABLE u SET TABLESPACE ts", dbname="db")
    main.sql(*(f"ALTER INDEX {name}_pkey SET TABLESPACE ts" for name in "tu"), dbname="db")
    main.sql("ALTER DATABASE db SET TABLESPACE pg_default")
    check(main, "t", dbname="db")
    main.sql(f"CREATE DATABASE copy TEMPLATE db STRATEGY {strategy}")
    main.restart()
    for name, dbname in [("t", "db"), ("t", "copy"), ("s", "db"), ("s", "copy")]:
        check(main, name, dbname=dbname)
    main.sql("DROP DATABASE db", "DROP DATABASE copy")
    main.sql("DROP TABLESPACE ts")


def test_relations_elsewhere_are_copied_along(main: Endpoint):
    """CREATE DATABASE by file copy takes the tablespaces in which it finds files of the source."""
    main.sql(*IN_PLACE, "CREATE DATABASE source")
    fill(main, "t", "ts", dbname="source")
    main.restart()
    main.sql("CREATE DATABASE copy TEMPLATE source STRATEGY file_copy")
    main.sql("DROP DATABASE source")
    check(main, "t", dbname="copy")
    main.restart()
    check(main, "t", dbname="copy")
    refused(main, "DROP TABLESPACE ts", "is not empty")


def test_location_elsewhere(main: Endpoint, test_dir: Path):
    """A fresh compute does not have the directory that the first one was given."""
    location = test_dir / "location"
    location.mkdir()
    if os.geteuid() == 0:
        shutil.chown(location, ACCOUNT, ACCOUNT)
    main.sql(f"CREATE TABLESPACE ts LOCATION '{location}'")
    fill(main, "t", "ts")
    assert main.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts'") == str(location)
    main.stop()
    shutil.rmtree(location)
    main.start()
    check(main, "t")
    fill(main, "t2", "ts")
    refused(main, "DROP TABLESPACE ts", "is not empty")
    main.sql("DROP TABLE t, t2", "DROP TABLESPACE ts")


SIZES = """SELECT pg_relation_size(oid), pg_relation_size(oid, 'fsm') > 0, pg_relation_size(oid, 'vm'),
                  pg_table_size(oid) - pg_relation_size(oid, 'fsm'), pg_indexes_size(oid)
           FROM pg_class WHERE relname IN ('t', 'u', 'p', 'm') ORDER BY relname"""


def test_sizes_are_those_of_a_stock_server(main: Endpoint, test_dir: Path, ports):
    """And a database is the sum of its relations, a tablespace of what is in it, wherever they are asked for."""
    statements = [
        "CREATE TABLE t AS SELECT i, repeat('x', 300) v FROM generate_series(1, 20000) i",
        "CREATE INDEX ON t (i)",
        "CREATE UNLOGGED TABLE u AS SELECT * FROM t",
        "CREATE TABLE p (i int PRIMARY KEY, v text) TABLESPACE ts",
        "INSERT INTO p SELECT * FROM t",
        "CREATE MATERIALIZED VIEW m AS SELECT i, repeat(md5(i::text), 200) v FROM t WHERE i < 500",
        "VACUUM t, u, p, m",
    ]
    stock = StockServer(test_dir / "stock", ports.get(), autovacuum="off").init().start()
    try:
        main.sql(*IN_PLACE, *statements)
        for statement in statements:
            stock.sql(statement.replace(" TABLESPACE ts", ""))
        assert main.sql(SIZES) == stock.sql(SIZES)
    finally:
        stock.destroy()
    main.sql("CREATE DATABASE other")
    relations = """SELECT sum(size) FROM pg_class, LATERAL (SELECT sum(pg_relation_size(oid, fork)) size
                   FROM unnest('{main,fsm,vm,init}'::text[]) fork) f WHERE NOT relisshared AND relkind IN ('r','i','m','t','S')"""
    for restart in (False, True):
        if restart:
            main.restart()
        for database, elsewhere in [("postgres", "other"), ("other", "postgres")]:
            total = int(main.value(relations, dbname=database))
            own = main.value(f"SELECT pg_database_size('{database}')", dbname=database)
            # PG_VERSION, pg_filenode.map and pg_internal.init are part of it.
            assert total < own < total + 300_000
            main.sql("CHECKPOINT")
            seen_elsewhere = main.value(f"SELECT pg_database_size('{database}')", dbname=elsewhere)
            assert abs(seen_elsewhere - own) <= 300_000
        in_ts = int(main.value(relations + " AND reltablespace > 1664"))
        assert in_ts > 0 and main.value("SELECT pg_tablespace_size('ts')") == in_ts
        assert abs(main.value("SELECT pg_tablespace_size('ts')", dbname="other") - in_ts) <= 100_000
        assert main.value("SELECT pg_tablespace_size('pg_global')") > 500_000
    main.sql("TRUNCATE t, u, p")
    assert main.value("SELECT pg_tablespace_size('ts')") == 8192
    assert main.value("SELECT pg_tablespace_size('ts')", dbname="other") == 8192
