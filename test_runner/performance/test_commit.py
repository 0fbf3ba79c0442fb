"""Commits: one client's latency and the throughput of eight, with three safekeepers and fsync.

Peers: one fsync of a small write on the same disk, and stock PostgreSQL with two synchronous standbys, ANY 1.
"""

import os
import re
import statistics
import time
import urllib.request

import psycopg2
import pytest

from fixtures.compare import Comparison, report_values
from fixtures.neon_env import SUPERUSER, NeonEnvBuilder
from fixtures.stock import StockCluster

COMMITS = 100
ROUNDS = 9
SECONDS = 5
WRITE_BYTES = 8192


def micros(action) -> float:
    """How long it takes, in microseconds."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1e6


def flushes(node) -> float:
    """How often a safekeeper has made WAL durable since it was started."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.http_port}/metrics") as response:
        text = response.read().decode()
    return float(re.search(r"^safekeeper_flush_wal_seconds_count(?:{.*})? (\S+)$", text, re.MULTILINE).group(1))


class Disk:
    """Writes pages into space that is there already, each made durable, as the safekeeper's WAL is."""

    def __init__(self, path):
        with open(path, "wb") as file:
            file.write(b"\0" * COMMITS * WRITE_BYTES)
            os.fsync(file.fileno())
        self.file, self.number = open(path, "r+b", buffering=0), 0

    def fsync(self):
        self.file.seek(self.number % COMMITS * WRITE_BYTES)
        self.number += 1
        self.file.write(b"x" * WRITE_BYTES)
        os.fdatasync(self.file.fileno())


@pytest.fixture
def peers(neon_env_builder: NeonEnvBuilder, test_dir, ports):
    """Our cluster and its endpoint, and the stock primary."""
    neon_env_builder.safekeepers = 3
    neon_env_builder.file_cache = True
    env = neon_env_builder.start()
    for node in env.safekeepers:
        command = open(f"/proc/{node.pid}/cmdline", encoding="utf-8").read()
        assert "--no-sync" not in command, "safekeepers without fsync are no measure"
    ours = env.endpoint("main").start()
    stock = StockCluster(test_dir / "stock", ports)
    yield env, ours, stock.primary
    stock.destroy()


def connect(port: int):
    connection = psycopg2.connect(f"host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS t (i int)")
    return connection


def actions_of(ours, primary, test_dir):
    """A commit of ours, one of stock's, and a small write made durable: functions."""
    cursors = [connect(port).cursor() for port in (ours.port, primary.port)]
    disk = Disk(test_dir / "fsync")
    return [lambda cursor=cursor: cursor.execute("INSERT INTO t VALUES (1)") for cursor in cursors] + [disk.fsync]


def report_commits(name: str, medians: list[list[float]]):
    """From rounds of medians: of our commits, stock's, and fsyncs."""
    commits, stock, fsyncs = zip(*medians, strict=True)
    compared = Comparison(name, "µs", False)
    compared.ours, compared.peer = list(commits), list(stock)
    compared.report()
    report_values(f"{name}_fsync", "µs", list(fsyncs))
    above = [commit - fsync for commit, fsync in zip(commits, fsyncs, strict=True)]
    report_values(f"{name}_above_one_fsync", "µs", above)


def test_commit_latency(peers, test_dir):
    env, ours, primary = peers
    actions, medians = actions_of(ours, primary, test_dir), []
    for _ in range(ROUNDS):
        before = [flushes(node) for node in env.safekeepers]
        # One of each in turn, for the disk's mood changes within a second; whose turn is first changes too, for
        # what one has made durable the next need not.
        times: list[list[float]] = [[], [], []]
        for number in range(COMMITS * len(actions)):
            which = (number + number // len(actions)) % len(actions)
            times[which].append(micros(actions[which]))
        flushed = [flushes(node) - count for node, count in zip(env.safekeepers, before, strict=True)]
        # Each commit took two flushes that ended between its WAL and the next. Which safekeepers they were changes: one
        # that was late makes the WAL of two commits durable at once, and counts for the later one only.
        assert sum(flushed) >= 2 * COMMITS, f"commits without a flush on a majority: {flushed}"
        medians.append([statistics.median(of) for of in times])
    report_commits("commit_latency_1_client", medians)


def test_commits_in_a_row(peers, test_dir):
    """As a client makes them that does nothing else: no CPU has gone to sleep over another's turn. The client is pgbench."""
    env, ours, primary = peers
    disk, script = Disk(test_dir / "fsync"), commit_script(test_dir, ours, primary)

    def commits(port: int) -> float:
        log = test_dir / "transactions"
        env.run_pg("pgbench", "-n", "-t", str(COMMITS), "-l", "--log-prefix", str(log), "-f", str(script), *target(port))
        (written,) = test_dir.glob("transactions.*")
        # The third column is a transaction's time, in microseconds.
        times = [int(line.split()[2]) for line in written.read_text().splitlines()]
        written.unlink()
        return statistics.median(times)

    actions = [
        lambda: commits(ours.port),
        lambda: commits(primary.port),
        lambda: statistics.median(micros(disk.fsync) for _ in range(COMMITS)),
    ]
    medians = []
    for number in range(ROUNDS):
        of: list[float] = [0.0] * len(actions)
        for turn in range(len(actions)):
            which = (number + turn) % len(actions)
            of[which] = actions[which]()
        medians.append(of)
    report_commits("commits_in_a_row_1_client", medians)


def test_commit_throughput(peers, test_dir):
    env, ours, primary = peers
    script = commit_script(test_dir, ours, primary)

    def tps(port: int) -> float:
        output = env.run_pg("pgbench", "-n", "-c", "8", "-j", "2", "-T", str(SECONDS), "-f", str(script), *target(port))
        return float(re.search(r"tps = ([\d.]+)", output).group(1))

    Comparison("commit_throughput_8_clients", "TPS", True).alternate(
        lambda: tps(ours.port), lambda: tps(primary.port), ROUNDS).report()


def commit_script(test_dir, *servers):
    """pgbench's script of a commit, for which the servers are prepared."""
    for server in servers:
        connect(server.port).close()
    script = test_dir / "commit.sql"
    script.write_text("INSERT INTO t VALUES (1);\n")
    return script


def target(port: int) -> list[str]:
    """Of pgbench."""
    return ["-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER, "postgres"]
