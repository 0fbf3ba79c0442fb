"""A stock server moves in: its base backup and WAL become a timeline."""

import json
import tarfile

from fixtures.neon_env import Background, Endpoint, NeonEnvBuilder, new_id
from fixtures.ports import PortDistributor
from fixtures.stock import SUPERUSER, StockServer
from fixtures.whole_state import amcheck

BALANCES = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)"""


def test_running_server_is_imported(neon_env_builder: NeonEnvBuilder, test_dir, ports: PortDistributor):
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    stock = StockServer(test_dir / "stock", ports.get(), max_wal_senders=5).init().start()
    try:
        bench = ["-h", "127.0.0.1", "-p", str(stock.port), "-U", SUPERUSER, "postgres"]
        env.run_pg("pgbench", "-q", "-i", "-s", "2", *bench)
        stock.sql("CREATE TABLE quiet AS SELECT i, md5(i::text) AS m FROM generate_series(1, 1000) i")
        work = Background(env.run_pg, "pgbench", "-n", "-c", "4", "-T", "6", *bench)
        stock.run("pg_basebackup", "-D", "backup", "-F", "t", "-X", "stream", "-c", "fast", "-d", stock.dsn())
        work.join()
        checksum = "SELECT count(*), md5(string_agg(m, ',' ORDER BY i)) FROM quiet"
        expected = stock.sql(checksum)
    finally:
        stock.stop("immediate")

    backup = stock.directory / "backup"
    ((wal_range),) = json.loads((backup / "backup_manifest").read_text())["WAL-Ranges"]
    assert tarfile.open(backup / "pg_wal.tar").getnames()
    timeline = new_id()
    env.neon_local(
        "timeline", "import", "--tenant-id", env.tenant, "--timeline-id", timeline, "--node-name", "imported",
        "--base-tarfile", str(backup / "base.tar"), "--base-lsn", wal_range["Start-LSN"],
        "--wal-tarfile", str(backup / "pg_wal.tar"), "--end-lsn", wal_range["End-LSN"], "--pg-version", "15",
    )  # fmt: skip
    endpoint = Endpoint(env, "imported", env.tenant, ports.get(), "imported")
    env.endpoints.append(endpoint.set(port=endpoint.port))
    endpoint.start()
    assert endpoint.sql(checksum) == expected
    (balances,) = endpoint.sql(BALANCES)
    assert balances[0] is not None and len(set(balances)) == 1
    amcheck(endpoint)
    # It goes on as any other timeline does.
    endpoint.pgbench("-n", "-c", "2", "-t", "50")
    endpoint.restart()
    (after,) = endpoint.sql(BALANCES)
    assert len(set(after)) == 1
    assert endpoint.value("SELECT count(*) FROM pgbench_history") > 100
    stock.destroy()
