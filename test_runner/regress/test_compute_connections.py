"""The compute and the others: pageserver away, no quorum yet, walproposer gone, start and stop."""

import re
import shutil
import subprocess
import threading
import time

import psycopg2
import pytest

from fixtures import processes
from fixtures.neon_env import CommandFailed, NeonEnvBuilder
from fixtures.pagestream_proxy import PagestreamProxy
from fixtures.paths import REPOSITORY
from fixtures.stock import run_as_account

READ = "SELECT sum(length(v)) FROM t"
ROWS = 20000


def prepare(env, **settings):
    main = env.endpoint("main").set(shared_buffers="2MB", autovacuum="off", **settings).start()
    main.sql("CREATE EXTENSION neon", "CREATE EXTENSION neon_test_utils")
    main.sql(f"CREATE TABLE t AS SELECT i, repeat('x', 100) v FROM generate_series(1, {ROWS}) i")
    return main


def test_queries_wait_for_the_pageserver(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = prepare(env)
    with main.cursor() as cursor:
        cursor.execute(READ)
        env.pageserver.stop()
        # Cancelled while it waits.
        cursor.execute("SELECT clear_buffer_cache(); SET statement_timeout = '1s'")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute(READ)
        # Given up after the time set.
        cursor.execute("SET statement_timeout = 0; SET neon.pageserver_timeout = '2s'")
        started = time.monotonic()
        with pytest.raises(psycopg2.OperationalError, match="could not connect to the page server within 2 s"):
            cursor.execute(READ)
        assert time.monotonic() - started < 4
        # And it goes on when the pageserver is back.
        cursor.execute("RESET neon.pageserver_timeout")
        starter = threading.Timer(2, env.pageserver.start)
        starter.start()
        cursor.execute(READ)
        assert cursor.fetchall() == [(ROWS * 100,)]
        starter.join()


def test_cancelling_reads_at_any_moment(neon_env_builder: NeonEnvBuilder):
    """Answers to requests nobody waits for any more must not be taken for those of later ones."""
    main = prepare(neon_env_builder.start())
    cancelled = 0
    with main.cursor() as cursor:
        for timeout_ms in range(1, 40):
            cursor.execute(f"SELECT clear_buffer_cache(); SET statement_timeout = '{timeout_ms}ms'")
            try:
                cursor.execute(READ)
            except psycopg2.errors.QueryCanceled:
                cancelled += 1
            cursor.execute("SET statement_timeout = 0")
            cursor.execute(READ)
            assert cursor.fetchall() == [(ROWS * 100,)]
    assert cancelled > 0


def behind_proxy(env, ports, **settings):
    proxy = PagestreamProxy(ports.get(), env.pageserver.pg_port)
    address = f"postgresql://no_user@127.0.0.1:{proxy.listener.getsockname()[1]}"
    return prepare(env, neon__pageserver_connstring=address, **settings), proxy


def message(kind: bytes, payload: bytes) -> bytes:
    return kind + (len(payload) + 4).to_bytes(4, "big") + payload


# What comes in place of answers, and what the compute's log says of it.
BAD_ANSWERS = [
    (lambda answers: answers[: len(answers) // 2], "it closed the connection"),
    (lambda answers: answers[:3], "it closed the connection"),
    (lambda answers: message(b"N", b"Mnothing\0\0") + message(b"S", b"a\0b\0") + answers, "it closed the connection"),
    (lambda answers: message(b"E", b"SFATAL\0C57P01\0Mtold to stop\0\0"), "told to stop"),
    (lambda answers: message(b"E", b"SFATAL"), "an error without a text"),
    (lambda answers: message(b"E", b"Mcut off"), "cut off"),
    (lambda answers: message(b"c", b""), "it ended the stream"),
    (lambda answers: message(b"x", b""), "an unexpected message of type 120"),
    (lambda answers: message(b"\0", b""), "an unexpected message of type 0"),
    (lambda answers: b"d\0\0\0\3", "of type 100 with a wrong length"),
    (lambda answers: b"d\xff\xff\xff\xff" + answers, "of type 100 with a wrong length"),
    (lambda answers: b"d\0\1\0\0" + answers, "of type 100 with a wrong length, 65532 bytes"),
]


def test_streams_that_break(neon_env_builder: NeonEnvBuilder, ports):
    """However the stream ends, the log says why, and the query goes on with another one."""
    main, proxy = behind_proxy(neon_env_builder.start(), ports)
    with main.cursor() as cursor:
        for spoil, reason in BAD_ANSWERS:
            line = "lost the connection to the page server: "
            before = main.log.count(line)
            cursor.execute("SELECT clear_buffer_cache()")
            proxy.spoil = spoil
            cursor.execute(READ)
            assert cursor.fetchall() == [(ROWS * 100,)]
            processes.wait_until(lambda: main.log.count(line) > before, f"the log has: {reason}")
            assert reason in main.log.split(line)[before + 1].split("\n")[0]
    main.stop()
    proxy.close()


def test_the_query_after_a_cancelled_one(neon_env_builder: NeonEnvBuilder, ports):
    """Answers that come when nobody waits for them any more, many at once, of another table."""
    main, proxy = behind_proxy(neon_env_builder.start(), ports)
    main.sql(f"CREATE TABLE u AS SELECT i, repeat('y', 90) v FROM generate_series(1, {ROWS}) i")
    with main.cursor() as cursor:
        for _ in range(5):
            cursor.execute("SELECT clear_buffer_cache(); SET statement_timeout = 0")
            # Half of the table is read, the requests for the other half are on their way.
            cursor.execute("BEGIN; DECLARE c CURSOR FOR SELECT v FROM t; MOVE 8000 FROM c")
            proxy.answering.clear()
            cursor.execute("SET statement_timeout = '200ms'")
            with pytest.raises(psycopg2.errors.QueryCanceled):
                cursor.execute("MOVE ALL FROM c")
            proxy.answering.set()
            cursor.execute("ROLLBACK; SET statement_timeout = 0")
            cursor.execute("SELECT sum(length(v)), min(v) = max(v) FROM u")
            assert cursor.fetchall() == [(ROWS * 90, True)]
            cursor.execute("SELECT sum(length(v)), min(v) = max(v) FROM t")
            assert cursor.fetchall() == [(ROWS * 100, True)]
    main.stop()
    proxy.close()


def test_nobody_gets_in_without_a_quorum(neon_env_builder: NeonEnvBuilder):
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    main = prepare(env)
    for node in env.safekeepers[:2]:
        node.stop()
    # Its walproposer is killed, so that the quorum has to be found anew, and the guard stays open.
    processes.kill(main.walproposer_pid())
    assert main.value("SELECT 1") == 1
    main.kill()
    env.safekeepers[0].start()
    main.start()
    main.sql("INSERT INTO t VALUES (0, 'x')")


def test_walproposer_is_started_again(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = prepare(env)
    for _ in range(3):
        pid = main.walproposer_pid()
        processes.kill(pid)
        main.sql("INSERT INTO t VALUES (0, 'x')")
        assert main.walproposer_pid() != pid


def test_clean_stop_loses_nothing(neon_env_builder: NeonEnvBuilder):
    """Not even transactions that did not wait for the quorum; and leaves nothing behind."""
    env = neon_env_builder.start()
    main = prepare(env)
    with main.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off; CREATE SEQUENCE s; SELECT nextval('s')")
        for i in range(100):
            cursor.execute(f"INSERT INTO t VALUES (-1, '{i}')")
    walproposer = main.walproposer_pid()
    main.stop()
    assert not processes.alive(walproposer)
    assert [path for path in (main.dir / "base").glob("*/[0-9]*")] == []
    main.start()
    assert main.value("SELECT count(*) FROM t WHERE i = -1") == 100


def test_a_crashed_directory_is_refused(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = prepare(env)
    walproposer = main.walproposer_pid()
    main.kill()
    processes.wait_until(lambda: not processes.alive(walproposer), "the walproposer ends with its server")
    # Where nobody reaps it, the dead server still looks alive to the next one.
    (main.dir / "postmaster.pid").unlink(missing_ok=True)
    with pytest.raises(RuntimeError, match="was not shut down cleanly"):
        run_as_account("postgres", "-D", str(main.dir), cwd=main.dir)
    main.start()
    assert main.value("SELECT count(*) FROM t") == ROWS


def test_functions_of_the_extension(neon_env_builder: NeonEnvBuilder):
    main = prepare(neon_env_builder.start())
    received = "SELECT received_lsn FROM backpressure_lsns() WHERE received_lsn >= '%s'" % main.lsn()
    processes.wait_until(lambda: main.sql(received), "the pageserver has reported that it has everything")
    assert main.value("SELECT backpressure_throttling_time()") >= 0


FUNCTIONS = {
    "neon": {
        "pg_cluster_size()",
        "backpressure_lsns()",
        "backpressure_throttling_time()",
        "local_cache_pages()",
        "local_cache_statistics()",
    },
    "neon_test_utils": {
        "test_consume_xids(integer)",
        "clear_buffer_cache()",
        "compare_pages(regclass)",
        "get_raw_page_at_lsn(text,text,bigint,pg_lsn)",
        "get_raw_page_at_lsn(oid,oid,oid,integer,bigint,pg_lsn)",
        "neon_xlogflush(pg_lsn)",
        "set_next_oid(oid)",
    },
}


def test_extensions_have_what_is_documented(neon_env_builder: NeonEnvBuilder):
    main = prepare(neon_env_builder.start())
    members = """SELECT {kind}::text FROM pg_depend JOIN pg_extension e ON refobjid = e.oid
                 WHERE deptype = 'e' AND classid = '{catalog}'::regclass AND extname = '{extension}'"""
    for extension, functions in FUNCTIONS.items():
        query = members.format(kind="objid::regprocedure", catalog="pg_proc", extension=extension)
        assert {row[0] for row in main.sql(query)} == functions
    views = members.format(kind="objid::regclass", catalog="pg_class", extension="neon")
    assert {row[0] for row in main.sql(views)} == {"local_cache", "local_cache_stat", "standby_lag"}
    before = main.value("SELECT txid_current()")
    main.sql("SELECT test_consume_xids(1000)")
    assert main.value("SELECT txid_current()") > before + 1000
    main.sql("SELECT neon_xlogflush(pg_current_wal_insert_lsn())")
    oids = "(SELECT dattablespace FROM pg_database WHERE datname = 'postgres'), (SELECT oid FROM pg_database WHERE datname = 'postgres')"
    by_number = f"get_raw_page_at_lsn({oids}, pg_relation_filenode('t'), 0, 0, NULL)"
    assert main.value(f"SELECT {by_number} = get_raw_page_at_lsn('t', 'main', 0, NULL)") is True
    main.sql("CREATE ROLE somebody LOGIN")
    for call in ("clear_buffer_cache()", "set_next_oid(1)", by_number):
        with psycopg2.connect(main.dsn(user="somebody")) as connection, connection.cursor() as cursor:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(f"SELECT {call}")


def test_another_minor_version_is_refused(neon_env_builder: NeonEnvBuilder, test_dir):
    """The extension built with the headers of another minor version; Debian updates PostgreSQL in place."""
    config = lambda what: subprocess.run(["pg_config", what], capture_output=True, text=True, check=True).stdout.strip()
    headers, source = test_dir / "include", test_dir / "neon"
    shutil.copytree(config("--includedir-server"), headers)
    shutil.copytree(REPOSITORY / "compute" / "neon", source, ignore=shutil.ignore_patterns("*.o", "*.so"))
    for header in headers.glob("pg_config*.h"):
        header.write_text(re.sub(r"(define PG_VERSION_NUM) (\d{4})\d\d", r"\1 \g<2>01", header.read_text()))
    build = ["make", "-s", "-C", str(source), f"includedir_server={headers}", "CFLAGS=-fPIC -O0"]
    subprocess.run(build, check=True, capture_output=True)
    endpoint = neon_env_builder.start().endpoint("main").set(shared_preload_libraries=str(source / "neon.so"))
    with pytest.raises(CommandFailed):
        endpoint.start()
    assert "neon: built for PostgreSQL 15." in endpoint.log and ", but this server is version 15." in endpoint.log
    assert "Rebuild the extension" in endpoint.log


def test_bad_settings_are_refused(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    for name, value, reason in [
        ("neon__pageserver_connstring", "postgresql://u:secret@localhost:1", "name of an environment variable"),
        ("synchronous_standby_names", "", "would not wait"),
        ("wal_level", "minimal", "wal_level must be"),
    ]:
        bad = env.endpoint(name, branch="main").set(max_wal_senders="0", **{name: value})
        with pytest.raises(CommandFailed):
            bad.start()
        assert reason in bad.log
        assert "secret" not in bad.log


def test_read_only_compute(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    main = prepare(env, max_prepared_transactions="10", max_connections="150")
    lsn = main.lsn()
    main.sql("DELETE FROM t WHERE i > 10", "VACUUM t", "CREATE TABLE later ()")
    old = env.endpoint("old", branch="main", lsn=lsn).start()
    assert old.sql("SELECT count(*), sum(length(v)) FROM t") == [(ROWS, ROWS * 100)]
    assert old.value("SELECT pg_relation_size('t')") > ROWS * 100
    assert old.value("SELECT count(*) FROM pg_class WHERE relname = 'later'") == 0
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        old.sql("INSERT INTO t VALUES (0, 'x')")
    assert main.value("SELECT count(*) FROM t") == 10


def test_size_limit(neon_env_builder: NeonEnvBuilder):
    main = prepare(neon_env_builder.start())
    processes.wait_until(lambda: main.value("SELECT pg_cluster_size()"), "the pageserver has reported a size")
    main.sql("ALTER SYSTEM SET neon.max_cluster_size = '1MB'", "SELECT pg_reload_conf()")
    with pytest.raises(psycopg2.errors.DiskFull, match="cluster size limit"):
        main.sql("SELECT pg_sleep(0.5)", "INSERT INTO t SELECT i, repeat('y', 100) FROM generate_series(1, 20000) i")
    main.sql("ALTER SYSTEM RESET neon.max_cluster_size", "SELECT pg_reload_conf()", "SELECT pg_sleep(0.5)")
    main.sql("INSERT INTO t SELECT i, repeat('y', 100) FROM generate_series(1, 20000) i")
