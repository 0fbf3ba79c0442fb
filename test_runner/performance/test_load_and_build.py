"""Loading data and building indexes on our compute with three safekeepers, beside a stock server alone: fsync on, the same
shared_buffers and max_wal_size. The compute has the local file cache that neon_local gives it (2 GB), the stock server the
kernel's. BENCH_FILE_CACHE=0 takes it away: all that is read back comes from the pageserver then.

TPC-B with data ten times shared_buffers has the peer that makes as sure of a commit: a stock server with two
synchronous standbys.

Full size, some ten minutes; the environment may say otherwise:
`BENCH_SCALE=5 BENCH_COPY_MB=50 BENCH_RELATIONS=5000 BENCH_ROUNDS=1` for a look, `BENCH_RELATIONS=1000000` for a night.
"""

import os
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from fixtures.compare import Comparison, report_values
from fixtures.lsn import parse
from fixtures.neon_env import Endpoint, NeonEnvBuilder, SUPERUSER
from fixtures.processes import wait_until
from fixtures.stock import StockCluster, StockServer

SCALE = int(os.environ.get("BENCH_SCALE", "100"))
COPY_MB = int(os.environ.get("BENCH_COPY_MB", "1000"))
RELATIONS = int(os.environ.get("BENCH_RELATIONS", "100000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
FILE_CACHE = os.environ.get("BENCH_FILE_CACHE") != "0"
TPCB_SECONDS = 15

# One row of pgbench_accounts takes about 130 bytes: the data of one unit of scale is about 15 MB.
MB_PER_SCALE = 15
SETTINGS = {"shared_buffers": "128MB", "max_wal_size": "4GB"}

INDEXES = {
    "btree": "CREATE INDEX i ON d USING btree (word, a)",
    "gin": "CREATE INDEX i ON d USING gin (numbers)",
    "gist": "CREATE INDEX i ON d USING gist (place)",
}
# Tables made in one transaction, and how many there are at first.
BATCH = 500
FEW = 1000

Server = Endpoint | StockServer


class Peers:
    """Our endpoint and the stock server."""

    def __init__(self, ours: Endpoint, stock: StockServer):
        self.ours, self.stock = ours, stock

    @property
    def both(self) -> tuple[Server, Server]:
        return self.ours, self.stock

    def compare(self, name: str, unit: str, measure: Callable[[Server], float], higher_is_better: bool):
        """Reports what `measure` gives for each, in turn; each finds the disk idle and its buffers clean."""

        def prepared(server: Server) -> float:
            server.sql("CHECKPOINT")
            os.sync()
            return measure(server)

        comparison = Comparison(name, unit, higher_is_better)
        comparison.alternate(lambda: prepared(self.ours), lambda: prepared(self.stock), ROUNDS).report()

    def pgbench(self, server: Server, *arguments: str) -> str:
        where = ("-h", "127.0.0.1", "-p", str(server.port), "-U", SUPERUSER, "postgres")
        return self.ours.env.run_pg("pgbench", *arguments, *where, timeout=7200)


def seconds(work: Callable) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


@pytest.fixture
def ours(neon_env_builder: NeonEnvBuilder, request) -> Endpoint:
    """Our compute, with the settings that the test's parameter adds."""
    neon_env_builder.safekeepers = 3
    neon_env_builder.file_cache = FILE_CACHE
    return neon_env_builder.start().endpoint("main").set(**{**SETTINGS, **getattr(request, "param", {})}).start()


@pytest.fixture
def peers(ours: Endpoint, test_dir, ports):
    """The peer is a stock server alone."""
    stock = StockServer(test_dir / "stock", ports.get(), **SETTINGS, wal_level="replica").init().start()
    yield Peers(ours, stock)
    stock.destroy()


@pytest.fixture
def durable_peers(ours: Endpoint, test_dir, ports):
    """The peer is a stock server with two synchronous standbys, which has the compute's shared_buffers."""
    stock = StockCluster(test_dir / "stock", ports)
    buffers = ours.value("SHOW shared_buffers")
    for name, value in {**SETTINGS, "shared_buffers": buffers}.items():
        stock.primary.sql(f"ALTER SYSTEM SET {name} = '{value}'")
    stock.primary.stop()
    stock.primary.start()
    yield Peers(ours, stock.primary)
    stock.destroy()


@pytest.mark.timeout(7200)
def test_pgbench_init(peers: Peers):
    def measure(server: Server) -> float:
        return seconds(lambda: peers.pgbench(server, "-q", "-i", "-s", str(SCALE)))

    peers.compare(f"pgbench_init_scale_{SCALE}", "s", measure, higher_is_better=False)


@pytest.fixture
def rows_file(test_dir: Path) -> Path:
    """A file of `COPY_MB` megabytes in COPY's text format: int, text, timestamp."""
    line = "\t".join(["12345", "x" * 80, "2026-11-22 12:00:00"]) + "\n"
    lines = 1024 * 1024 // len(line)
    path = test_dir / "rows"
    with open(path, "w", encoding="ascii") as file:
        for _ in range(COPY_MB):
            file.write(line * lines)
    return path


@pytest.mark.timeout(7200)
def test_copy(peers: Peers, rows_file: Path):
    def measure(server: Server) -> float:
        server.sql("DROP TABLE IF EXISTS c")
        server.sql("CREATE TABLE c (a int, b text, t timestamp)")
        with closing(psycopg2.connect(server.dsn())) as connection, open(rows_file, encoding="ascii") as rows:
            start = time.monotonic()
            with connection, connection.cursor() as cursor:
                cursor.copy_expert("COPY c FROM STDIN", rows, size=1024 * 1024)
            return COPY_MB / (time.monotonic() - start)

    peers.compare(f"copy_{COPY_MB}_mb", "MB/s", measure, higher_is_better=True)


@pytest.mark.timeout(7200)
def test_create_index(peers: Peers):
    rows = COPY_MB * 1024 * 1024 // 200
    for server in peers.both:
        server.sql(
            "CREATE TABLE d AS SELECT i AS a, md5(i::text) AS word, ARRAY[i % 1000, i % 777, i % 31] AS numbers,"
            f" point(i % 1009, i / 1009) AS place FROM generate_series(1, {rows}) i"
        )
        server.sql("VACUUM ANALYZE d")
    for method, create in INDEXES.items():

        def measure(server: Server) -> float:
            server.sql("DROP INDEX IF EXISTS i")
            return seconds(lambda: server.sql(create))

        peers.compare(f"create_index_{method}_{COPY_MB}_mb", "s", measure, higher_is_better=False)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("ours", [{"shared_buffers": f"{max(SCALE * MB_PER_SCALE // 10, 4)}MB"}], indirect=True)
def test_tpcb_with_data_ten_times_shared_buffers(durable_peers: Peers):
    for server in durable_peers.both:
        durable_peers.pgbench(server, "-q", "-i", "-s", str(SCALE))

    def measure(server: Server) -> float:
        output = durable_peers.pgbench(server, "-n", "-c", "8", "-j", "2", "-T", str(TPCB_SECONDS))
        return float(re.search(r"tps = ([\d.]+)", output).group(1))

    durable_peers.compare(f"tpcb_10_times_buffers_scale_{SCALE}", "TPS", measure, higher_is_better=True)


def wait_for_ingest(ours: Endpoint):
    """Waits until the pageserver has all WAL that there is by now."""
    end = parse(ours.value("SELECT pg_current_wal_flush_lsn()"))
    http, tenant, timeline = ours.env.pageserver.http(), ours.env.tenant, ours.env.timelines["main"]
    wait_until(
        lambda: parse(http.timeline(tenant, timeline)["last_record_lsn"]) >= end, "WAL is ingested", pause=0.002
    )


@pytest.mark.timeout(14400)
def test_create_table_among_many(peers: Peers):
    """A table costs the compute and the pageserver the same whether there are few or very many."""
    made = {server.port: 0 for server in peers.both}

    def create(server: Server):
        first = made[server.port]
        made[server.port] += BATCH
        server.sql(
            f"""DO $$ BEGIN FOR i IN {first}..{first + BATCH - 1} LOOP
                EXECUTE format('CREATE TABLE many_%s (a int)', i); END LOOP; END $$"""
        )

    def create_and_ingest(server: Server) -> float:
        """Microseconds per table, until the pageserver knows of all of them."""
        last = lambda: wait_for_ingest(server) if server is peers.ours else None
        return seconds(lambda: (create(server), last())) / BATCH * 1e6

    of_ours = {}
    for relations in (FEW, RELATIONS):
        for server in peers.both:
            while made[server.port] < relations:
                create(server)
        comparison = Comparison(f"create_table_among_{relations}", "us", higher_is_better=False)
        ours, stock = (lambda: create_and_ingest(peers.ours)), (lambda: create_and_ingest(peers.stock))
        of_ours[relations] = comparison.alternate(ours, stock, 5).report().ours
    medians = {relations: sorted(values)[len(values) // 2] for relations, values in of_ours.items()}
    report_values(f"create_table_among_{RELATIONS}_to_{FEW}", "times", [medians[RELATIONS] / medians[FEW]])
