"""pgbench on our compute with three safekeepers, and on stock PostgreSQL with two synchronous standbys."""

import re

import pytest

from fixtures.compare import Comparison
from fixtures.neon_env import NeonEnvBuilder, SUPERUSER
from fixtures.stock import StockCluster

SCALE = 10
SECONDS = 10
ROUNDS = 5


@pytest.fixture
def peers(neon_env_builder: NeonEnvBuilder, test_dir, ports):
    """Our endpoint and the stock primary, both filled; the function gives the TPS of one."""
    neon_env_builder.safekeepers = 3
    neon_env_builder.file_cache = True
    env = neon_env_builder.start()
    ours = env.endpoint("main").set(shared_buffers="512MB").start()
    stock = StockCluster(test_dir / "stock", ports)
    stock.primary.sql("ALTER SYSTEM SET shared_buffers = '512MB'")
    stock.primary.stop()
    stock.primary.start()

    def pgbench(port: int, *arguments: str) -> str:
        return env.run_pg("pgbench", *arguments, "-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, "postgres")

    for port in (ours.port, stock.primary.port):
        pgbench(port, "-q", "-i", "-s", str(SCALE))

    def tps(port: int, *arguments: str) -> float:
        output = pgbench(port, "-T", str(SECONDS), "-c", "8", "-j", "2", "-n", *arguments)
        return float(re.search(r"tps = ([\d.]+)", output).group(1))

    yield (lambda *arguments: tps(ours.port, *arguments)), (lambda *arguments: tps(stock.primary.port, *arguments))
    stock.destroy()


def test_tpcb(peers):
    ours, stock = peers
    Comparison("tpcb_8_clients", "TPS", True).alternate(ours, stock, ROUNDS).report()


def test_tpcb_one_client(peers):
    ours, stock = peers
    one = ("-c", "1", "-j", "1")
    Comparison("tpcb_1_client", "TPS", True).alternate(lambda: ours(*one), lambda: stock(*one), ROUNDS).report()


def test_select_only(peers):
    ours, stock = peers
    # Once through, so that everything is in shared buffers.
    ours("-S"), stock("-S")
    Comparison("select_only_8_clients", "TPS", True).alternate(lambda: ours("-S"), lambda: stock("-S"), ROUNDS).report()
