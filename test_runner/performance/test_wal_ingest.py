"""WAL into the pageserver, beside stock PostgreSQL's own recovery of the same WAL."""

import re
import time

from fixtures import lsn, processes
from fixtures.compare import Comparison
from fixtures.neon_env import NeonEnvBuilder
from fixtures.stock import StockServer

ROUNDS = 3
SCALE = 20


def test_ingest(neon_env_builder: NeonEnvBuilder, test_dir, ports):
    """A killed pageserver that had written out nothing gets a workload's WAL again, alone on the machine."""
    keep_in_memory = {"checkpoint_distance": 1 << 40, "checkpoint_timeout": "1h"}
    neon_env_builder.tenant_settings.update(keep_in_memory)
    env = neon_env_builder.start()
    http = env.pageserver.http()
    env.allowed_log_lines.append("wal receiver|walreceiver")
    stock = StockServer(test_dir / "stock", ports.get(), fsync="off", full_page_writes="off",
                        max_wal_size="100GB", checkpoint_timeout="1d", log_min_messages="log").init()

    def load(execute, pgbench):
        pgbench("-q", "-i", "-s", str(SCALE))
        execute("VACUUM ANALYZE")
        pgbench("-n", "-c", "4", "-t", "3000")

    def ours() -> float:
        http.tenant_configure(env.tenant, **keep_in_memory)
        name = f"b{time.monotonic_ns()}"
        timeline = env.branch(name)
        endpoint = env.endpoint(name, branch=name).set(neon__max_replication_write_lag="10GB").start()
        load(endpoint.sql, endpoint.pgbench)
        end = lsn.parse(endpoint.lsn())
        endpoint.stop()
        env.pageserver.kill()
        env.pageserver.start()
        http.wait_active(env.tenant)
        # From here on it writes layers as it does by default.
        http.tenant_configure(env.tenant)

        def last_record() -> int:
            return lsn.parse(http.timeline(env.tenant, timeline)["last_record_lsn"])

        began_at, began = last_record(), time.monotonic()
        processes.wait_until(lambda: last_record() >= end, "WAL is ingested", 300, 0.01)
        return (end - began_at) / 1e6 / (time.monotonic() - began)

    def peer() -> float:
        stock.start()
        load(stock.sql, lambda *arguments: env.run_pg("pgbench", *arguments, "-h", "127.0.0.1", "-p", str(stock.port),
                                                      "-U", "cloud_admin", "postgres"))
        stock.stop("immediate")
        stock.start()
        log = (stock.directory / "pg.log").read_text()
        start, end, elapsed = re.findall(
            r"redo starts at (\S+)[\s\S]*?redo done at (\S+) system usage: .*elapsed: ([\d.]+) s", log)[-1]
        stock.stop()
        return (lsn.parse(end) - lsn.parse(start)) / 1e6 / float(elapsed)

    Comparison("wal_ingest_beside_recovery", "MB/s", True).alternate(ours, peer, ROUNDS).report()
    stock.destroy()
