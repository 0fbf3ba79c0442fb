"""How long it takes to have a database: starting an endpoint, branching, creating a tenant."""

import time

import pytest

from fixtures.compare import Comparison, report_values
from fixtures.neon_env import NeonEnvBuilder, new_id
from fixtures.stock import StockServer

ROUNDS = 7


def seconds(action) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


@pytest.mark.parametrize("scale", [1, 50])
def test_start_to_first_query(neon_env_builder: NeonEnvBuilder, test_dir, ports, scale: int):
    neon_env_builder.safekeepers = 3
    neon_env_builder.file_cache = True
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").start()
    endpoint.pgbench("-q", "-i", "-s", str(scale))
    endpoint.stop()
    stock = StockServer(test_dir / "stock", ports.get()).init()

    def ours() -> float:
        took = seconds(lambda: endpoint.start().value("SELECT 1"))
        endpoint.stop()
        return took

    def peer() -> float:
        took = seconds(lambda: stock.start().sql("SELECT 1"))
        stock.stop()
        return took

    Comparison(f"start_to_first_query_scale_{scale}", "s", False).alternate(ours, peer, ROUNDS).report()
    stock.destroy()


@pytest.mark.parametrize("scale", [1, 50])
def test_branch(neon_env_builder: NeonEnvBuilder, scale: int):
    env = neon_env_builder.start()
    env.endpoint("main").start().pgbench("-q", "-i", "-s", str(scale))
    http = env.pageserver.http()
    create = lambda: http.timeline_create(env.tenant, new_id(), env.timelines["main"])  # noqa: E731
    create()
    report_values(f"branch_scale_{scale}", "ms", [1000 * seconds(create) for _ in range(20)])


def test_tenant(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.start()
    http = env.pageserver.http()

    def create():
        tenant = new_id()
        http.tenant_create(tenant)
        http.timeline_create(tenant, new_id())

    report_values("second_tenant", "ms", [1000 * seconds(create) for _ in range(10)])
