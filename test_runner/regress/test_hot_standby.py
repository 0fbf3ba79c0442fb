"""Computes that only read: one that follows the primary, and many that stay at an LSN."""

import time

import psycopg2
import pytest

from fixtures import processes
from fixtures.neon_env import Background, CommandFailed, Endpoint, NeonEnv, NeonEnvBuilder

SMALL = {"shared_buffers": "1MB", "autovacuum": "off"}


def start_primary(env: NeonEnv, **settings) -> Endpoint:
    main = env.endpoint("main").set(**{**SMALL, **settings}).start()
    main.sql("CREATE EXTENSION neon", "CREATE EXTENSION neon_test_utils")
    return main


def create_standby(env: NeonEnv, name: str = "standby", **settings) -> Endpoint:
    return env.endpoint(name, branch="main", hot_standby=True).set(**{**SMALL, **settings})


def catch_up(primary: Endpoint, standby: Endpoint):
    """Waits until everything the primary has logged is replayed."""
    # A commit flushes all WAL before it, which some commands leave to others.
    primary.sql("SELECT pg_logical_emit_message(true, '', '')")
    behind = f"SELECT pg_last_wal_replay_lsn() < '{primary.value('SELECT pg_current_wal_flush_lsn()')}'"
    processes.wait_until(lambda: not standby.value(behind), "the standby has caught up")


CHECK = "SELECT count(*), sum(i), sum(n), md5(string_agg(v, ',' ORDER BY i)) FROM t"


def test_standby_follows(neon_env_builder: NeonEnvBuilder):
    """Every kind of change arrives, with less memory than data on both sides."""
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    main = start_primary(env)
    main.sql("CREATE TABLE t (i int PRIMARY KEY, n int, v text)")
    main.sql("INSERT INTO t SELECT i, 0, repeat('x', 200) FROM generate_series(1, 20000) i")
    standby = create_standby(env, neon__max_file_cache_size="4MB").start()
    assert standby.value("SELECT pg_is_in_recovery()") is True
    for statement in [
        "UPDATE t SET n = i WHERE i % 3 = 0",
        "DELETE FROM t WHERE i % 7 = 0",
        "VACUUM t",
        "INSERT INTO t SELECT i, 1, md5(i::text) FROM generate_series(20001, 25000) i",
        "CREATE INDEX t_n ON t (n)",
        "DELETE FROM t WHERE i > 3000",
        "VACUUM (TRUNCATE) t",
        "INSERT INTO t SELECT i, 2, repeat(md5(i::text), 9) FROM generate_series(30001, 40000) i",
        "VACUUM FULL t",
        "ALTER TABLE t ADD COLUMN w int DEFAULT 7",
        "REINDEX TABLE t",
        "TRUNCATE t",
        "INSERT INTO t SELECT i, 3, 'z' FROM generate_series(1, 100) i",
    ]:
        main.sql(statement)
        catch_up(main, standby)
        assert standby.sql(CHECK) == main.sql(CHECK), statement
        by_index = "SET enable_seqscan = off; SELECT count(*), sum(n) FROM t WHERE i BETWEEN 100 AND 2000"
        assert standby.sql(by_index) == main.sql(by_index), statement
        assert standby.value("SELECT pg_relation_size('t')") == main.value("SELECT pg_relation_size('t')"), statement
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        standby.sql("INSERT INTO t VALUES (0)")


def test_reads_during_replay(neon_env_builder: NeonEnvBuilder):
    """A transaction is seen as a whole or not at all, and nothing goes backwards, while pages come and go."""
    env = neon_env_builder.start()
    main = start_primary(env)
    main.sql("CREATE TABLE t (i int PRIMARY KEY, n int, v text) WITH (fillfactor = 50)")
    main.sql("INSERT INTO t SELECT i, 0, repeat('x', 300) FROM generate_series(1, 4000) i")
    standby = create_standby(env, neon__max_file_cache_size="2MB", max_standby_streaming_delay="60s").start()
    stop = time.monotonic() + 12

    def write():
        turn = 0
        with main.cursor() as cursor:
            while time.monotonic() < stop:
                turn += 1
                cursor.execute(f"UPDATE t SET n = {turn}")
                cursor.execute("SELECT clear_buffer_cache()")
                if turn % 5 == 0:
                    cursor.execute("VACUUM t")
                # Replay with so little memory is slower than the primary.
                time.sleep(0.2)
        return turn

    def read() -> int:
        last = rounds = 0
        with standby.cursor() as cursor:
            while time.monotonic() < stop:
                cursor.execute("SELECT min(n), max(n), count(*) FROM t")
                ((lowest, highest, rows),) = cursor.fetchall()
                assert lowest == highest and rows == 4000 and lowest >= last, f"{lowest=} {highest=} {rows=} {last=}"
                cursor.execute("SET enable_seqscan = off; SELECT count(*), count(DISTINCT n) FROM t WHERE i > 0")
                assert cursor.fetchall() == [(4000, 1)]
                last, rounds = lowest, rounds + 1
        return rounds

    writer, readers = Background(write), [Background(read) for _ in range(2)]
    turns, rounds = writer.join(), [reader.join() for reader in readers]
    assert turns > 5 and min(rounds) > 5
    catch_up(main, standby)
    assert standby.sql("SELECT DISTINCT n FROM t") == [(turns,)]


def test_databases_and_tablespaces_on_a_standby(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = start_primary(env)
    standby = create_standby(env).start()
    main.sql("SET allow_in_place_tablespaces = on", "CREATE TABLESPACE ts LOCATION ''")
    for strategy in ("wal_log", "file_copy"):
        main.sql("CREATE DATABASE db STRATEGY " + strategy)
        main.sql("CREATE TABLE t TABLESPACE ts AS SELECT generate_series(1, 10000) i", dbname="db")
        main.sql("CREATE UNLOGGED TABLE u AS SELECT 1 i", "CREATE SEQUENCE s", "SELECT nextval('s')", dbname="db")
        catch_up(main, standby)
        assert standby.value("SELECT count(*) FROM t", dbname="db") == 10000
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match="unlogged"):
            standby.sql("SELECT * FROM u", dbname="db")
        main.sql("ALTER TABLE t SET TABLESPACE pg_default", dbname="db")
        catch_up(main, standby)
        assert standby.value("SELECT count(*) FROM t", dbname="db") == 10000
        # Forgotten there: the same numbers may be given again.
        main.sql("ALTER DATABASE db SET TABLESPACE ts")
        catch_up(main, standby)
        assert standby.value("SELECT count(*) FROM t", dbname="db") == 10000
        main.sql("DROP DATABASE db")
    main.sql("DROP TABLESPACE ts")
    catch_up(main, standby)
    assert standby.sql("SELECT spcname FROM pg_tablespace ORDER BY 1") == [("pg_default",), ("pg_global",)]


def test_lag_is_reported(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = start_primary(env)
    main.sql("CREATE TABLE t (i int)")
    standby = create_standby(env).start()
    catch_up(main, standby)
    caught_up = "SELECT lag_bytes = 0 AND lag_time = interval '0' FROM standby_lag"
    processes.wait_until(lambda: standby.sql(caught_up) == [(True,)], "no lag")
    standby.sql("SELECT pg_wal_replay_pause()")
    main.sql("INSERT INTO t SELECT generate_series(1, 10000)")
    behind = "SELECT lag_bytes > 300000 AND lag_time > interval '0' AND received_lsn > replayed_lsn FROM standby_lag"
    processes.wait_until(lambda: standby.sql(behind) == [(True,)], "a lag")
    assert standby.value("SELECT count(*) FROM t") == 0
    standby.sql("SELECT pg_wal_replay_resume()")
    processes.wait_until(lambda: standby.sql(caught_up) == [(True,)], "no lag again")
    assert standby.value("SELECT count(*) FROM t") == 10000
    assert main.sql("SELECT * FROM standby_lag") == []


def test_standby_survives_the_others(neon_env_builder: NeonEnvBuilder):
    """The safekeeper, the pageserver and the primary go and come back under it; it cannot be promoted."""
    env = neon_env_builder.start()
    main = start_primary(env, shared_buffers="16MB")
    main.sql("CREATE TABLE t AS SELECT 1 i")
    standby = create_standby(env).start()
    env.allowed_log_lines.append(".*")
    env.safekeepers[0].stop()
    assert standby.value("SELECT count(*) FROM t") == 1
    env.safekeepers[0].start()
    main.sql("INSERT INTO t VALUES (2)")
    catch_up(main, standby)
    main.restart()
    main.sql("INSERT INTO t VALUES (3)")
    catch_up(main, standby)
    main.kill()
    main.start()
    main.sql("INSERT INTO t VALUES (4)")
    catch_up(main, standby)
    assert standby.value("SELECT count(*) FROM t") == 4
    # Replay needs a page that nobody has. It waits, and the server can be stopped meanwhile.
    standby.sql("SELECT clear_buffer_cache()")
    env.pageserver.stop()
    main.sql("INSERT INTO t VALUES (5)")
    processes.wait_until(lambda: "could not connect to the page server" in standby.log, "replay waits for the pageserver")
    standby.stop()
    env.pageserver.start()
    standby.start()
    assert standby.value("SELECT count(*) FROM t") == 5
    with pytest.raises(psycopg2.Error):
        standby.sql("SELECT pg_promote()")
    processes.wait_until(lambda: not (standby.dir / "postmaster.pid").exists(), "the server has stopped")
    assert "a replica cannot be promoted" in standby.log
    standby.start()
    assert standby.value("SELECT count(*) FROM t") == 5


def test_standby_without_a_primary(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    standby = create_standby(env)
    with pytest.raises(CommandFailed, match="needs a running primary"):
        standby.start()


def test_many_fixed_computes_beside_the_primary(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = start_primary(env)
    main.sql("CREATE TABLE t (i int)")
    readers = []
    for n in range(4):
        main.sql(f"INSERT INTO t SELECT {n} FROM generate_series(1, 1000)")
        readers.append(env.endpoint(f"at{n}", branch="main", lsn=main.lsn()).set(**SMALL))
    for reader in readers:
        reader.start()
    for _ in range(3):
        main.sql("UPDATE t SET i = i + 100", "VACUUM t")
        for n, reader in enumerate(readers):
            assert reader.sql("SELECT i, count(*) FROM t GROUP BY i ORDER BY i") == [(k, 1000) for k in range(n + 1)]
