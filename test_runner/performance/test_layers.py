"""What keeping a history in layers costs: reads after many updates, on a deep branch, and through a cold cache; bytes
written to object storage and kept there; and layers on their way back from there.

Layers are small, so that minutes do what hours do with those of production; what counts is how many there are.
"""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.compare import Comparison, emit, report_values
from fixtures.getpage import PageReader
from fixtures.lsn import parse
from fixtures.neon_env import Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.processes import wait_until
from fixtures.stock import StockServer

MB = 1 << 20
ROUNDS = 5
UPDATE_SECONDS = int(os.environ.get("UPDATE_SECONDS", "60"))
SMALL_LAYERS = {
    "checkpoint_distance": 8 * MB,
    "compaction_target_size": 8 * MB,
    "checkpoint_timeout": "2s",
    "compaction_period": "1s",
    "compaction_threshold": 4,
    "image_creation_threshold": 3,
    "gc_horizon": 32 * MB,
    "gc_period": "5s",
    "pitr_interval": "0s",
}

# How the names of layers over all keys begin.
LEVEL0 = f"{0:036X}-{'F' * 36}__"


def metric(env: NeonEnv, pattern: str) -> float:
    """Sum of the series whose name and labels match."""
    lines = env.pageserver.http().metrics().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(pattern, line))


def settle(env: NeonEnv, endpoint: Endpoint, branch: str = "main"):
    """Waits until all WAL is in layers, few of them of level 0, and in object storage if there is one."""
    http, timeline = env.pageserver.http(), env.timelines[branch]
    lsn = endpoint.value("SELECT pg_current_wal_flush_lsn()")

    def is_settled() -> bool:
        on_disk = http.timeline(env.tenant, timeline)["disk_consistent_lsn"]
        names = [layer["layer_file_name"] for layer in http.layers(env.tenant, timeline)["historic_layers"]]
        level0 = sum(name.startswith(LEVEL0) for name in names)
        return parse(on_disk) >= parse(lsn) and level0 < SMALL_LAYERS["compaction_threshold"]

    wait_until(is_settled, "the WAL is in layers", 120)
    if env.remote_storage:
        http.wait_uploaded(env.tenant, timeline, lsn, timeout=120)


def visited_buckets(env: NeonEnv) -> list[tuple[float, int]]:
    """How many reads looked into how many layer files at most, cumulative."""
    pattern = re.compile(r'pageserver_read_layers_visited_bucket\{le="([^"]+)"\} (\d+)')
    return [(float(bound), int(count)) for bound, count in pattern.findall(env.pageserver.http().metrics())]


def report_visited(name: str, before: list[tuple[float, int]], after: list[tuple[float, int]]):
    """Prints p50, p99 and the maximum of the reads between."""
    counts = [(bound, count - earlier) for (bound, count), (_, earlier) in zip(after, before)]
    total = counts[-1][1]
    quantile = lambda part: next(bound for bound, count in counts if count >= part * total)
    values = {"p50": quantile(0.5), "p99": quantile(0.99), "max": quantile(1)}
    text = ", ".join(f"{key} {value:g}" for key, value in values.items())
    emit(f"BENCHMARK {name}: {text} layers, {total} reads", {"name": name, "values": values})


def test_after_many_updates(neon_env_builder: NeonEnvBuilder):
    """The peer of the updated table is a fresh copy of it."""
    neon_env_builder.tenant_settings |= SMALL_LAYERS
    env = neon_env_builder.with_local_fs().start()
    main = env.endpoint("main").start()
    begun = parse(main.lsn())
    main.pgbench("-q", "-i", "-s", "10")
    main.pgbench("-n", "-c", "4", "-T", str(UPDATE_SECONDS))
    settle(env, main)
    wal = parse(main.lsn()) - begun
    uploaded = metric(env, r'pageserver_remote_timeline_client_bytes_total\{.*op_kind="upload"')
    report_values("object_storage_write_amplification", "bytes uploaded per byte of WAL", [uploaded / wal])
    kept = metric(env, r"pageserver_remote_physical_size\{")
    logical = main.value("SELECT sum(pg_database_size(oid)) FROM pg_database")
    report_values("object_storage_bytes_per_logical_byte", "bytes", [kept / int(logical)])
    report_values("read_depth_bound", "layers", [metric(env, r"pageserver_read_depth_layers\{")])

    main.sql("CREATE TABLE fresh AS SELECT * FROM pgbench_accounts")
    settle(env, main)
    env.pageserver.stop(), env.pageserver.start()
    env.pageserver.http().wait_active(env.tenant)
    updated, fresh = PageReader(env, main, "pgbench_accounts"), PageReader(env, main, "fresh")
    before = visited_buckets(env)
    updated.read()
    report_visited("layers_visited_per_page_read_updated", before, visited_buckets(env))
    updated.results.clear()
    Comparison("getpage_updated_beside_fresh_p50", "us", False).alternate(
        lambda: updated.read()["p50_us"], lambda: fresh.read()["p50_us"], ROUNDS
    ).report()
    for name, reader in (("updated", updated), ("fresh", fresh)):
        report_values(f"getpage_{name}_p99", "us", [result["p99_us"] for result in reader.results])


def test_a_branch_10_deep(neon_env_builder: NeonEnvBuilder):
    """Pages that nobody has changed since the root: wanted is at least 0.67, that is, at most 1.5 times the time."""
    neon_env_builder.tenant_settings |= SMALL_LAYERS
    env = neon_env_builder.start()
    main = env.endpoint("main").start()
    main.pgbench("-q", "-i", "-s", "10")
    settle(env, main)
    main.stop()
    parent = "main"
    for depth in range(1, 11):
        name = f"depth{depth}"
        env.branch(name, ancestor=parent)
        endpoint = env.endpoint(name).start()
        endpoint.sql(f"CREATE TABLE own{depth} AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i")
        settle(env, endpoint, name)
        parent = name
    reader = PageReader(env, endpoint, "pgbench_accounts")
    # Neither is to begin with the better caches.
    reader.read("main"), reader.read(parent)
    reader.results.clear()
    Comparison("getpage_branch_10_deep_beside_root_p50", "us", False).alternate(
        lambda: reader.read(parent)["p50_us"], lambda: reader.read("main")["p50_us"], ROUNDS
    ).report()
    Comparison("getpage_branch_10_deep_beside_root_pages_per_second", "pages/s", True).alternate(
        lambda: reader.read(parent)["pages_per_second"], lambda: reader.read("main")["pages_per_second"], ROUNDS
    ).report()


def durably(path: Path, write):
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize("at_once", [1, 8])
def test_on_demand_download(neon_env_builder: NeonEnvBuilder, test_dir, s3_server, at_once: int):
    """All layers of a timeline, beside the same objects fetched by boto3 into files that are fsynced as well."""
    neon_env_builder.tenant_settings |= {**SMALL_LAYERS, "gc_period": "0s"}
    env = neon_env_builder.with_s3(s3_server).start()
    main = env.endpoint("main").start()
    main.pgbench("-q", "-i", "-s", "20")
    settle(env, main)
    main.stop()
    # What a checkpoint has logged at the end, and then nothing changes any more.
    time.sleep(5)
    http, timeline = env.pageserver.http(), env.timelines["main"]
    layers = http.layers(env.tenant, timeline)["historic_layers"]
    names = [layer["layer_file_name"] for layer in layers]
    megabytes = sum(layer["layer_file_size"] for layer in layers) / MB
    local, storage = threading.local(), env.remote_storage
    copies = test_dir / "copies"
    copies.mkdir()

    def timed(one) -> float:
        started = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(one, names))
        return megabytes / (time.monotonic() - started)

    def ours() -> float:
        for name in names:
            wait_until(lambda: http.layer_evict(env.tenant, timeline, name), "the layer is evicted")

        def one(name: str):
            # A connection of each thread's own.
            local.http = getattr(local, "http", None) or env.pageserver.http()
            assert local.http.layer_download(env.tenant, timeline, name)

        return timed(one)

    def boto3() -> float:
        def one(name: str):
            local.client = getattr(local, "client", None) or s3_server.client()
            key = storage.key("pageserver", f"tenants/{env.tenant}/timelines/{timeline}/{name}")
            body = local.client.get_object(Bucket=s3_server.bucket, Key=key)["Body"]
            durably(copies / name, lambda file: [file.write(chunk) for chunk in body.iter_chunks(256 * 1024)])

        return timed(one)

    Comparison(f"download_{at_once}_at_once_beside_boto3", "MB/s", True).alternate(ours, boto3, ROUNDS).report()


ROWS = 2_500_000
# A table of 320 MB; shared buffers and the pageserver's cache together have a tenth of that.
CACHES = {"shared_buffers": "16MB"}
PAGESERVER_CACHE = "page_cache_size=2048"
FILL = [
    "CREATE TABLE t (i int, v text)",
    f"INSERT INTO t SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, {ROWS}) i",
    "VACUUM (FREEZE, ANALYZE) t",
    "CHECKPOINT",
]


def drop_kernel_caches():
    """So that everybody reads from the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_sequential_scan_through_a_cold_cache(neon_env_builder: NeonEnvBuilder, test_dir, ports):
    """A table ten times the size of the caches. Layers are local, the pageserver has just started, and nothing is in the
    kernel's cache, neither for us nor for the stock server."""
    if os.geteuid() != 0:
        pytest.skip("only root can drop the kernel's caches")
    settings = {**CACHES, "autovacuum": "off", "max_parallel_workers_per_gather": "0"}
    neon_env_builder.pageserver_overrides.append(PAGESERVER_CACHE)
    neon_env_builder.tenant_settings |= {"checkpoint_timeout": "5s", "compaction_period": "2s", "compaction_threshold": 3}
    env = neon_env_builder.start()
    ours = env.endpoint("main").set(**settings).start()
    stock = StockServer(test_dir / "stock", ports.get(), **settings, wal_level="replica").init().start()
    for server in (ours, stock):
        for statement in FILL:
            server.sql(statement)
    settle(env, ours)

    def scan(server) -> float:
        started = time.monotonic()
        assert server.sql("SELECT count(*) FROM t") == [(ROWS,)]
        return time.monotonic() - started

    def cold_ours() -> float:
        env.pageserver.stop(), env.pageserver.start()
        env.pageserver.http().wait_active(env.tenant)
        ours.sql("SELECT 1")
        drop_kernel_caches()
        return scan(ours)

    def cold_stock() -> float:
        drop_kernel_caches()
        return scan(stock)

    Comparison("sequential_scan_cold_pageserver", "s", False).alternate(cold_ours, cold_stock, ROUNDS).report()
    stock.destroy()
