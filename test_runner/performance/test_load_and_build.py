"""Loading data and building indexes on our compute with three safekeepers, and on stock PostgreSQL with two synchronous
standbys.

Sizes are small unless the environment says otherwise; for the figures in docs/performance.md:
`BENCH_SCALE=100 BENCH_COPY_MB=1000 BENCH_RELATIONS=100000`.
"""

import io
import os
import re
import time
from contextlib import closing

import psycopg2
import pytest

from fixtures.compare import Comparison
from fixtures.neon_env import NeonEnvBuilder, SUPERUSER
from fixtures.stock import StockCluster

SCALE = int(os.environ.get("BENCH_SCALE", "5"))
COPY_MB = int(os.environ.get("BENCH_COPY_MB", "50"))
RELATIONS = int(os.environ.get("BENCH_RELATIONS", "5000"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SECONDS = 15

# One row of pgbench_accounts takes about 130 bytes: the data of one unit of scale is about 15 MB.
MB_PER_SCALE = 15

INDEXES = {
    "btree": "CREATE INDEX i ON d USING btree (word, a)",
    "gin": "CREATE INDEX i ON d USING gin (numbers)",
    "gist": "CREATE INDEX i ON d USING gist (place)",
}


class Peers:
    """Our endpoint and the stock primary."""

    def __init__(self, env, ports: dict[str, int]):
        self.env, self.ports = env, ports

    def compare(self, name: str, unit: str, measure, higher_is_better: bool, rounds: int = ROUNDS):
        """Reports what `measure` gives for the port of each."""
        comparison = Comparison(name, unit, higher_is_better)
        ours, peer = (lambda: measure(self.ports["ours"])), (lambda: measure(self.ports["stock"]))
        comparison.alternate(ours, peer, rounds).report()

    def pgbench(self, port: int, *arguments: str) -> str:
        where = ("-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, "postgres")
        return self.env.run_pg("pgbench", *arguments, *where, timeout=7200)

    def sql(self, port: int, *statements: str):
        with closing(psycopg2.connect(f"host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    def seconds(self, port: int, *statements: str) -> float:
        start = time.monotonic()
        self.sql(port, *statements)
        return time.monotonic() - start


@pytest.fixture
def peers(neon_env_builder: NeonEnvBuilder, test_dir, ports, request):
    """Both servers, with the settings the test's parameter names."""
    settings = {"max_wal_size": "4GB", **getattr(request, "param", {})}
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    ours = env.endpoint("main").set(**settings).start()
    stock = StockCluster(test_dir / "stock", ports)
    for name, value in settings.items():
        stock.primary.sql(f"ALTER SYSTEM SET {name} = '{value}'")
    stock.primary.stop()
    stock.primary.start()
    yield Peers(env, {"ours": ours.port, "stock": stock.primary.port})
    stock.destroy()


@pytest.mark.timeout(7200)
def test_pgbench_init(peers: Peers):
    def measure(port: int) -> float:
        start = time.monotonic()
        peers.pgbench(port, "-q", "-i", "-s", str(SCALE))
        return time.monotonic() - start

    peers.compare(f"pgbench_init_scale_{SCALE}", "s", measure, higher_is_better=False)


@pytest.mark.timeout(7200)
def test_copy(peers: Peers):
    line = "\t".join(["12345", "x" * 80, "2026-11-22 12:00:00"]) + "\n"
    rows = COPY_MB * 1024 * 1024 // len(line)
    data = line * rows

    def measure(port: int) -> float:
        peers.sql(port, "DROP TABLE IF EXISTS c", "CREATE TABLE c (a int, b text, t timestamp)")
        with closing(psycopg2.connect(f"host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres")) as connection:
            start = time.monotonic()
            with connection, connection.cursor() as cursor:
                cursor.copy_expert("COPY c FROM STDIN", io.StringIO(data))
            return COPY_MB / (time.monotonic() - start)

    peers.compare(f"copy_{COPY_MB}_mb", "MB/s", measure, higher_is_better=True)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", INDEXES)
def test_create_index(peers: Peers, method: str):
    rows = COPY_MB * 1024 * 1024 // 200
    for port in peers.ports.values():
        peers.sql(
            port,
            "CREATE TABLE d AS SELECT i AS a, md5(i::text) AS word, ARRAY[i % 1000, i % 777, i % 31] AS numbers,"
            f" point(i % 1009, i / 1009) AS place FROM generate_series(1, {rows}) i",
            "VACUUM ANALYZE d",
        )

    def measure(port: int) -> float:
        peers.sql(port, "DROP INDEX IF EXISTS i", "CHECKPOINT")
        return peers.seconds(port, INDEXES[method])

    peers.compare(f"create_index_{method}_{COPY_MB}_mb", "s", measure, higher_is_better=False)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("peers", [{"shared_buffers": f"{max(SCALE * MB_PER_SCALE // 10, 4)}MB"}], indirect=True)
def test_tpcb_with_data_ten_times_shared_buffers(peers: Peers):
    for port in peers.ports.values():
        peers.pgbench(port, "-q", "-i", "-s", str(SCALE))

    def measure(port: int) -> float:
        output = peers.pgbench(port, "-n", "-c", "8", "-j", "2", "-T", str(SECONDS))
        return float(re.search(r"tps = ([\d.]+)", output).group(1))

    peers.compare(f"tpcb_10_times_buffers_scale_{SCALE}", "TPS", measure, higher_is_better=True)


@pytest.mark.timeout(7200)
def test_create_table_among_many(peers: Peers):
    """CREATE TABLE costs the same whether there are ten relations or very many."""
    batch = 500
    numbers = iter(range(1, 10**9))

    def create(port: int) -> float:
        start = next(numbers) * batch
        tables = f"""DO $$ BEGIN FOR i IN {start}..{start + batch - 1} LOOP
            EXECUTE format('CREATE TABLE many_%s (a int)', i); END LOOP; END $$"""
        return batch / peers.seconds(port, tables)

    peers.compare("create_table_among_few", "tables/s", create, higher_is_better=True)
    for port in peers.ports.values():
        for _ in range(RELATIONS // batch):
            create(port)
    peers.compare(f"create_table_among_{RELATIONS}", "tables/s", create, higher_is_better=True)
