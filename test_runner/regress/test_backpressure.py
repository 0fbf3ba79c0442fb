"""Writers keep the pace of a slow pageserver: they are never stopped, and never leave it far behind."""

import time

import pytest

from fixtures.lsn import parse
from fixtures.neon_env import Background, Endpoint, NeonEnvBuilder
from fixtures.processes import wait_until

MB = 1 << 20
LIMIT_MB = 1


def many_transactions(endpoint: Endpoint, rows: int):
    with endpoint.cursor() as cursor:
        for _ in range(rows // 20):
            cursor.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 20) i")


def one_statement(endpoint: Endpoint, rows: int):
    endpoint.sql(f"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, {rows}) i")


@pytest.mark.parametrize(
    "write, rows, records_slowed", [(many_transactions, 30_000, "25%"), (one_statement, 100_000, "6%")]
)
def test_writers_keep_the_pace_of_a_slow_pageserver(neon_env_builder: NeonEnvBuilder, write, rows, records_slowed):
    env = neon_env_builder.start()
    settings = {"neon__max_replication_write_lag": f"{LIMIT_MB}MB", "wal_buffers": "256kB", "autovacuum": "off"}
    main = env.endpoint("main").set(**settings).start()
    main.sql("CREATE EXTENSION neon", "CREATE TABLE t (i int, v text)")
    http = env.pageserver.http()
    http.failpoints(walreceiver_after_ingest=f"{records_slowed}sleep(1)")
    lags, ends = [], []
    writer = Background(write, main, rows)
    with main.cursor() as cursor:
        while writer.running:
            cursor.execute("SELECT pg_current_wal_lsn(), received_lsn FROM backpressure_lsns()")
            ((ours, theirs),) = cursor.fetchall()
            # Nothing is reported at first.
            if theirs != "0/0":
                lags.append(parse(ours) - parse(theirs))
                ends.append(parse(ours))
            time.sleep(0.25)
    writer.join()
    print(f"{len(lags)} samples, largest lag {max(lags) / MB:.1f} MB, WAL {(ends[-1] - ends[0]) / MB:.1f} MB")
    assert main.value("SELECT backpressure_throttling_time()") > 0, "the pageserver was not slow enough"
    assert max(lags) < 3 * LIMIT_MB * MB, "it was left behind"
    # In every two seconds something was written.
    pauses = [end for begin, end in zip(ends, ends[8:]) if begin == end]
    assert pauses == [], "writers were stopped"
    http.failpoints(walreceiver_after_ingest="off")
    wait_until(lambda: parse(main.value("SELECT received_lsn FROM backpressure_lsns()")) >= ends[-1], "it has caught up")
    assert main.value("SELECT count(*) FROM t") == rows
