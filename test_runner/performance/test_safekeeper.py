"""One safekeeper: how fast it takes WAL beside writing to its disk directly, and what idle timelines cost it."""

import os
import re
import time
from pathlib import Path

import pytest

from fixtures import lsn, processes
from fixtures.compare import Comparison, report_values
from fixtures.neon_env import NeonEnvBuilder, Safekeeper, new_id
from fixtures.proposer import PG_VERSION, SEGMENT_BYTES, SYSTEM_ID, Proposer
from fixtures.stock import StockServer

ROUNDS = 7
APPEND_BYTES = 128 << 10
# Appends under way at once.
WINDOW_BYTES = 64 * APPEND_BYTES
MESSAGE_BYTES = 100_000
MESSAGES = 1300
TIMELINES = 1000
LSN = "0/2000000"
IDLE_SECONDS = 20


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with the threads it had, to the nanosecond."""
    # The number of another process' CPU clock, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE).group(1))


@pytest.fixture
def safekeeper(neon_env_builder: NeonEnvBuilder) -> Safekeeper:
    node = neon_env_builder.start().safekeepers[0]
    assert "--no-sync" not in processes.command_line(node.pid), "a safekeeper without fsync is no measure"
    return node


def some_wal(test_dir, ports) -> tuple[int, bytes]:
    """WAL that PostgreSQL has written, mostly records of 100 kB: where it begins, and the bytes."""
    stock = StockServer(test_dir / "stock", ports.get(), fsync="off", wal_keep_size="1GB")
    try:
        stock.init().start()
        stock.sql("SELECT pg_switch_wal()")
        ((insert,),) = stock.sql("SELECT pg_current_wal_insert_lsn()")
        ((last,),) = stock.sql(f"SELECT max(pg_logical_emit_message(false, 'x', repeat('7', {MESSAGE_BYTES}))) "
                               f"FROM generate_series(1, {MESSAGES})")
        stock.stop()
        first, end = lsn.parse(insert) // SEGMENT_BYTES, lsn.parse(last)
        segments = range(first, -(-end // SEGMENT_BYTES))
        assert segments.stop <= 256, "the name of a segment is more than its number"
        wal = b"".join((stock.data / "pg_wal" / f"{1:08X}{0:08X}{number:08X}").read_bytes() for number in segments)
    finally:
        stock.destroy()
    start = first * SEGMENT_BYTES
    return start, wal[:end - start]


def push(node: Safekeeper, start: int, wal: bytes) -> tuple[float, float, float]:
    """Pushes the WAL into a new timeline: MB/s, bytes per acknowledgement, CPU milliseconds per MB."""
    proposer, view = Proposer(node.pg_port, start), memoryview(wal)
    cpu, begin, flushed, answers = cpu_seconds(node.pid), time.perf_counter(), start, 0
    while flushed < start + len(wal):
        while proposer.sent < start + len(wal) and proposer.sent - flushed < WINDOW_BYTES:
            offset = proposer.sent - start
            proposer.append(view[offset:offset + APPEND_BYTES])
        flushed = proposer.flushed()
        answers += 1
    seconds, cpu = time.perf_counter() - begin, cpu_seconds(node.pid) - cpu
    proposer.close()
    node.http().timeline_delete(proposer.tenant, proposer.timeline)
    megabytes = len(wal) / 1e6
    return megabytes / seconds, len(wal) // answers, cpu * 1e3 / megabytes


def write(path: Path, wal: bytes, sync_bytes: int) -> float:
    """Writes the same bytes as `dd` would, durable as often as the safekeeper's were: MB/s."""
    view, unsynced = memoryview(wal), 0
    with open(path, "wb", buffering=0) as file:
        begin = time.perf_counter()
        for offset in range(0, len(wal), APPEND_BYTES):
            unsynced += file.write(view[offset:offset + APPEND_BYTES])
            if unsynced >= sync_bytes:
                os.fdatasync(file.fileno())
                unsynced = 0
        os.fdatasync(file.fileno())
        seconds = time.perf_counter() - begin
    path.unlink()
    return len(wal) / 1e6 / seconds


def test_sequential_wal(safekeeper, test_dir, ports):
    start, wal = some_wal(test_dir, ports)
    batches, cpu = [], []

    def ours() -> float:
        rate, batch, spent = push(safekeeper, start, wal)
        batches.append(batch)
        cpu.append(spent)
        return rate

    def peer() -> float:
        return write(test_dir / "direct", wal, batches[-1])

    # Only to know the batches that the peer's are to be like.
    ours()
    compared = Comparison("safekeeper_sequential_wal_128k", "MB/s", True).alternate(ours, peer, ROUNDS)
    compared.report()
    report_values("safekeeper_wal_bytes_per_fsync", "bytes", batches[1:])
    report_values("safekeeper_cpu_per_wal", "ms/MB", cpu[1:])


def test_idle_timelines(safekeeper):
    """A thousand timelines that nobody uses."""
    tenant, http = new_id(), safekeeper.http()

    def idle_cpu() -> float:
        """Milliseconds of CPU per second."""
        time.sleep(2)
        begin, cpu = time.perf_counter(), cpu_seconds(safekeeper.pid)
        time.sleep(IDLE_SECONDS)
        return (cpu_seconds(safekeeper.pid) - cpu) * 1e3 / (time.perf_counter() - begin)

    def create(count: int):
        for timeline in [new_id() for _ in range(count)]:
            http.timeline_create(tenant_id=tenant, timeline_id=timeline, pg_version=PG_VERSION, system_id=SYSTEM_ID,
                                 wal_seg_size=SEGMENT_BYTES, commit_lsn=LSN)
            # With the WAL in object storage the pageserver needs none, and nobody is told of the timeline any more.
            http.request("POST", f"/v1/record_safekeeper_info/{tenant}/{timeline}", json={"remote_consistent_lsn": LSN})

    create(10)
    without, before = idle_cpu(), resident_kib(safekeeper.pid)
    create(TIMELINES)
    with_them, after = idle_cpu(), resident_kib(safekeeper.pid)
    safekeeper.stop()
    safekeeper.start()
    restarted = idle_cpu()
    assert len(http.request("GET", "/v1/debug_dump?dump_memory=true")["timelines"]) > TIMELINES
    report_values("safekeeper_idle_cpu_10_timelines", "ms/s", [without])
    report_values("safekeeper_idle_cpu_1010_timelines", "ms/s", [with_them, restarted])
    report_values("safekeeper_memory_per_idle_timeline", "KiB", [(after - before) / TIMELINES])
    report_values("safekeeper_memory_1010_timelines_after_restart", "KiB", [resident_kib(safekeeper.pid)])
