"""GetPage over one connection, for pages in the pageserver's reach, beside the shortest query to stock PostgreSQL."""

import re

import pytest

from fixtures.compare import Comparison, report_values
from fixtures.getpage import PageReader
from fixtures.neon_env import SUPERUSER, NeonEnvBuilder
from fixtures.stock import StockServer

ROUNDS = 5
QUERIES = 20000


@pytest.mark.parametrize("relation", ["pgbench_accounts", "pgbench_branches"])
def test_getpage(neon_env_builder: NeonEnvBuilder, test_dir, ports, relation: str):
    """`pgbench_accounts`: many pages with few changes; `pgbench_branches`: pages that every transaction changes."""
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").start()
    endpoint.pgbench("-q", "-i", "-s", "10")
    endpoint.pgbench("-n", "-c", "4", "-t", "2500")
    reader = PageReader(env, endpoint, relation)
    stock = StockServer(test_dir / "stock", ports.get()).init().start()

    script = test_dir / "select_1.sql"
    script.write_text("SELECT 1;\n")

    def round_trip() -> float:
        output = env.run_pg("pgbench", "-n", "-f", str(script), "-t", str(QUERIES),
                            "-h", "127.0.0.1", "-p", str(stock.port), "-U", SUPERUSER, "postgres")
        return 1000 * float(re.search(r"latency average = ([\d.]+) ms", output).group(1))

    Comparison(f"getpage_{relation}_beside_select_1", "us", False).alternate(
        lambda: reader.read()["p50_us"], round_trip, ROUNDS
    ).report()
    for name, unit in [("p50_us", "us"), ("p99_us", "us"), ("pages_per_second", "pages/s")]:
        report_values(f"getpage_{relation}_{name}", unit, [result[name] for result in reader.results])
    stock.destroy()
