#!/usr/bin/env python3
"""Replay throughput: native redo beside stock PostgreSQL's recovery of the same WAL.

WAL of a pgbench and of a bulk load is written with full_page_writes = off and no consistency images. Then, in
turns, PostgreSQL recovers it from a copy of the data directory (its startup process reports its CPU time up to the end of
redo), and wal_redo_check replays it on one thread from the same copy (it reports its CPU time up to the end of replay, from
the start of the program on; the whole process, which gives back all memory, is shown, too). Neither writes pages: all fit into
shared_buffers. Rates are per second of CPU and the ratio is one of medians, so the machine may be busy.

Before that, and not timed, every page that native replay ends up with is compared with those that PostgreSQL's recovery has
written when it is shut down.

    throughput.py [--checker BIN] [--work DIR] [--rounds N] [--scale N] [--transactions N] [--rows N]

Fails below three times PostgreSQL's rate.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

import run

RATIO_MIN = 3
SETTINGS = {
    "wal_consistency_checking": "",
    "archive_mode": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "checkpoint_timeout": "1d",
    "max_wal_size": "100GB",
    "shared_buffers": "1GB",
    "log_min_messages": "log",
}
BULK_LOAD = """
CREATE TABLE bulk (id int PRIMARY KEY, a int, t text);
INSERT INTO bulk SELECT i, i % 1000, md5(i::text) FROM generate_series(1, {rows}) i;
CREATE INDEX bulk_a ON bulk (a);
COPY bulk TO '{file}';
CREATE TABLE copied (LIKE bulk INCLUDING ALL);
COPY copied FROM '{file}';
"""


def workload(server: run.Server, name: str, args):
    if name == "bulk load":
        script = server.work / "bulk.sql"
        script.write_text(BULK_LOAD.format(file=server.work / "bulk.copy", rows=args.rows))
        server.sql("-d", "postgres", "-v", "ON_ERROR_STOP=1", "-f", script)
    else:
        target = ["-h", server.sockets, "-p", server.port, "-U", "postgres", "postgres"]
        server.run("pgbench", "-i", "-s", args.scale, *target)
        server.run("pgbench", "-c", "4", "-t", args.transactions // 4, "-n", *target)


def recover(server: run.Server, shutdown: str = "immediate") -> float:
    """CPU seconds of PostgreSQL's startup process on the WAL behind the base copy. Its data directory is left."""
    shutil.rmtree(server.data / "pg_wal" / "archive_status", ignore_errors=True)
    recovered = recovered_directory(server)
    shutil.rmtree(recovered, ignore_errors=True)
    subprocess.run(["cp", "-a", server.base, recovered], check=True)
    shutil.rmtree(recovered / "pg_wal")
    subprocess.run(["cp", "-a", server.data / "pg_wal", recovered / "pg_wal"], check=True)
    # The base was shut down; with this state PostgreSQL recovers from its checkpoint.
    control = recovered / "global" / "pg_control"
    raw = bytearray(control.read_bytes())
    state_offset, in_production = 16, 6
    raw[state_offset : state_offset + 4] = in_production.to_bytes(4, "little")
    crc_offset = 288
    raw[crc_offset : crc_offset + 4] = crc32c(bytes(raw[:crc_offset])).to_bytes(4, "little")
    control.write_bytes(raw)
    log = server.work / "recovery.log"
    log.unlink(missing_ok=True)
    server.run("pg_ctl", "-D", recovered, "-l", log, "-w", "-t", "3600", "start")
    server.run("pg_ctl", "-D", recovered, "-w", "-t", "600", "-m", shutdown, "stop")
    usage = re.search(r"redo done at .* CPU: user: ([\d.]+) s, system: ([\d.]+) s", log.read_text())
    return float(usage.group(1)) + float(usage.group(2))


def recovered_directory(server: run.Server) -> pathlib.Path:
    return server.work / "recovered"


def crc32c(data: bytes) -> int:
    """CRC32C, bit by bit: pg_control is short."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def replay(server: run.Server, checker: pathlib.Path, *more) -> tuple[dict, float]:
    """The report of native replay of the same WAL, and CPU seconds of the whole process. Fails on any page that differs."""
    options = ["--json", "--threads", "1", "--base", server.base, "--start", server.redo_start(), *more]
    command = [str(part) for part in (checker, server.data / "pg_wal", *options)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(result.stdout), cpu


def rate(side: str, seconds: list[float], records: int, megabytes: float) -> str:
    """One side's line of the result."""
    median = statistics.median(seconds)
    return (
        f"  {side:<11} {median:6.2f} s of CPU ({min(seconds):.2f} to {max(seconds):.2f}), {1000 * median / megabytes:5.2f} ms/MB, "
        f"{records / median / 1e6:5.2f} million records/s, {megabytes / median:5.0f} MB/s"
    )


def measure(name: str, args) -> float:
    """Makes one workload's WAL and replays it both ways; gives the ratio of the rates."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="throughput_", dir=args.work))
    os.chmod(work, 0o755)
    server = run.Server(work, SETTINGS, run.find_pg_config())
    try:
        server.start()
        workload(server, name, args)
        server.run("pg_ctl", "-D", server.data, "-w", "-m", "immediate", "stop")
        recover(server, "fast")
        compared, _ = replay(server, args.checker, "--compare", recovered_directory(server))
        theirs, ours, whole = [], [], []
        for _ in range(args.rounds):
            theirs.append(recover(server))
            report, seconds = replay(server, args.checker)
            ours.append(report["replay_cpu_seconds"])
            whole.append(seconds)
        records = sum(kind["records"] for kind in report["kinds"].values())
        megabytes = sum(kind["bytes"] for kind in report["kinds"].values()) / 1e6
        ratio = statistics.median(theirs) / statistics.median(ours)
        pages = compared["final_pages_equal"]
        print(
            f"{name}: {records} records, {megabytes:.0f} MB, {pages} pages equal, {args.rounds} rounds, "
            f"native is {ratio:.2f} times as fast"
        )
        print(rate("PostgreSQL", theirs, records, megabytes))
        print(rate("native", ours, records, megabytes))
        print(rate("its process", whole, records, megabytes), flush=True)
        return ratio
    finally:
        if args.keep:
            print(f"  left in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(server.sockets, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checker", type=pathlib.Path, default="target/release/wal_redo_check")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", default="10", help="of pgbench")
    parser.add_argument("--transactions", type=int, default=100_000, help="of pgbench")
    parser.add_argument("--rows", type=int, default=1_500_000, help="of the bulk load")
    parser.add_argument("--keep", action="store_true", help="leave the clusters")
    args = parser.parse_args()
    ratios = [measure(name, args) for name in ("pgbench", "bulk load")]
    enough = min(ratios) >= RATIO_MIN
    print("ok" if enough else f"FAILED: less than {RATIO_MIN} times PostgreSQL's rate")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
