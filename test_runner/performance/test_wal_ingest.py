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
    """A cluster writes its WAL with the pageserver away; then the pageserver catches up, alone on the machine."""
    env = neon_env_builder.start()
    http = env.pageserver.http()
    main = env.endpoint("main").set(**{"neon__max_replication_write_lag": "10GB"}).start()

    def load(execute, pgbench):
        pgbench("-q", "-i", "-s", str(SCALE))
        execute("VACUUM ANALYZE")
        pgbench("-n", "-c", "4", "-t", "3000")

    env.allowed_log_lines.append("wal receiver|walreceiver")
    stock = StockServer(test_dir / "stock", ports.get(), fsync="off", full_page_writes="off",
                        max_wal_size="100GB", checkpoint_timeout="1d", log_min_messages="log").init()

    def ours() -> float:
        timeline = env.branch(f"b{time.monotonic_ns()}")
        endpoint = env.endpoint(f"e{time.monotonic_ns()}", branch=next(
            name for name, known in env.timelines.items() if known == timeline)).start()
        start = lsn.parse(endpoint.lsn())
        pid = env.pageserver.pid
        load(endpoint.sql, endpoint.pgbench)
        end = lsn.parse(endpoint.lsn())
        endpoint.stop()
        env.pageserver.kill()
        env.pageserver.start()
        assert env.pageserver.pid != pid
        began_at = lsn.parse(http.timeline(env.tenant, timeline)["last_record_lsn"])
        began = time.monotonic()
        processes.wait_until(
            lambda: lsn.parse(http.timeline(env.tenant, timeline)["last_record_lsn"]) >= end, "WAL is ingested", 300, 0.01)
        assert began_at >= start
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

    main.stop()
    Comparison("wal_ingest_beside_recovery", "MB/s", True).alternate(ours, peer, ROUNDS).report()
    stock.destroy()
