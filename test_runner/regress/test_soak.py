"""A long life in small: random work, branches and accidents for some minutes. States recorded at LSNs on the way are the judge."""

import collections
import dataclasses
import os
import random
import time

import psycopg2
import pytest

from fixtures.bank import Bank
from fixtures.lsn import parse
from fixtures.neon_env import CommandFailed, Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.processes import wait_until

SECONDS = int(os.environ.get("SOAK_SECONDS", "240"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
ROWS = 20_000
BRANCHES_MAX = 5
MB = 1 << 20

# All that takes hours with the usual settings happens within seconds.
SETTINGS = {
    "checkpoint_distance": MB,
    "compaction_target_size": MB,
    "compaction_period": "1s",
    "compaction_threshold": 3,
    "image_creation_threshold": 2,
    "gc_period": "2s",
    "gc_horizon": 16 * MB,
    "pitr_interval": "0s",
    "eviction_policy": {"kind": "LayerAccessThreshold", "period": "1s", "threshold": "3s"},
}
# All layers together may take so much of the disk; far less than there is in object storage.
BUDGET = 32 * MB
EVICTION = f"disk_usage_based_eviction = {{max_resident_bytes = {BUDGET}, period = '1s'}}"
# Beyond the budget there may be what has come since the last look: for each timeline, while only the bank is at work, a
# layer just written and one being written.
LOCAL_BYTES_MAX = BUDGET + 2 * SETTINGS["checkpoint_distance"] * BRANCHES_MAX

STATE = "SELECT count(*), coalesce(sum(hashtext(i || v)), 0), coalesce(sum(n), 0) FROM t"


@dataclasses.dataclass(frozen=True)
class Point:
    """What a branch held at an LSN."""

    branch: str
    lsn: str
    state: list[tuple]


class Life:
    """The cluster's branches, and what is known of their past."""

    def __init__(self, env: NeonEnv):
        self.env, self.http, self.rng = env, env.pageserver.http(), random.Random(SEED)
        self.computes: dict[str, Endpoint] = {}
        self.parents: dict[str, str] = {}
        self.points: list[Point] = []
        self.numbers = iter(range(10**6))
        self.counts: collections.Counter = collections.Counter()
        self.local_bytes_max = 0
        self.points_checked = 0

    def any_branch(self) -> str:
        return self.rng.choice(list(self.computes))

    def start_compute(self, branch: str) -> Endpoint:
        settings = {"shared_buffers": "2MB", "autovacuum": "off"}
        self.computes[branch] = self.env.endpoint(branch).set(**settings).start()
        return self.computes[branch]

    def step(self):
        """Something happens, of the kinds of work more often than of the accidents."""
        work = [self.update, self.insert_and_delete, self.vacuum, self.make_and_drop_tables, self.record, self.rest]
        accidents = [self.branch_now, self.branch_from_the_past, self.drop_branch, self.check_the_past]
        accidents += [self.restart_compute, self.kill_pageserver, self.kill_safekeeper, self.detach_and_attach]
        action = self.rng.choice(work * 3 + accidents)
        action()
        self.counts[action.__name__] += 1
        self.local_bytes_max = max(self.local_bytes_max, self.local_bytes())

    def local_bytes(self) -> int:
        total = 0
        for path in (self.env.repo / "tenants").rglob("*"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                pass  # It was evicted just now.
        return total

    def rest(self):
        """Whatever was done before, and whatever was read: it takes seconds until the disk is within its bounds."""
        wait_until(lambda: self.local_bytes() <= LOCAL_BYTES_MAX, "the disk is within its bounds", 60)

    def update(self):
        modulus = self.rng.randrange(2, 20)
        rest = self.rng.randrange(modulus)
        self.computes[self.any_branch()].sql(f"UPDATE t SET n = n + 1 WHERE i % {modulus} = {rest}")

    def insert_and_delete(self):
        first = self.rng.randrange(ROWS)
        self.computes[self.any_branch()].sql(
            f"DELETE FROM t WHERE i BETWEEN {first} AND {first + 1000}",
            f"INSERT INTO t SELECT i, repeat(md5(i::text), 4), 0 FROM generate_series({first}, {first + 900}) i",
        )

    def vacuum(self):
        self.computes[self.any_branch()].sql(self.rng.choice(["VACUUM t", "VACUUM FULL t", "REINDEX TABLE t"]))

    def make_and_drop_tables(self):
        name = f"extra_{next(self.numbers)}"
        self.computes[self.any_branch()].sql(
            f"CREATE TABLE {name} AS SELECT i, md5(i::text) FROM generate_series(1, 5000) i",
            f"CREATE INDEX ON {name} (i)",
            f"DROP TABLE {name}",
        )

    def record(self):
        branch = self.any_branch()
        state = self.computes[branch].sql(STATE)
        self.points.append(Point(branch, self.flushed_lsn(branch), state))

    def is_collected(self, point: Point) -> bool:
        timeline = self.http.timeline(self.env.tenant, self.env.timelines[point.branch])
        return parse(point.lsn) < parse(timeline["latest_gc_cutoff_lsn"])

    def at(self, point: Point, action):
        """What `action` returns at a point of the past; None if that has been collected."""
        try:
            return action()
        except (CommandFailed, psycopg2.Error):
            # Garbage collection may have overtaken us.
            if not self.is_collected(point):
                raise
            self.points.remove(point)
            return None

    def retained_point(self) -> Point | None:
        self.points = [point for point in self.points if not self.is_collected(point)]
        return self.rng.choice(self.points) if self.points else None

    def check_the_past(self):
        if point := self.retained_point():
            reader = self.env.endpoint(f"reader{next(self.numbers)}", branch=point.branch, lsn=point.lsn)
            state = self.at(point, lambda: reader.start().sql(STATE))
            if state is not None:
                assert state == point.state, point
                self.points_checked += 1
            reader.destroy()

    def add_branch(self, parent: str, lsn: str | None) -> str:
        name = f"b{next(self.numbers)}"
        self.env.branch(name, ancestor=parent, lsn=lsn)
        self.parents[name] = parent
        return name

    def branch_now(self):
        if len(self.computes) < BRANCHES_MAX:
            parent = self.any_branch()
            state = self.computes[parent].sql(STATE)
            compute = self.start_compute(self.add_branch(parent, self.flushed_lsn(parent)))
            assert compute.sql(STATE) == state

    def flushed_lsn(self, branch: str) -> str:
        lsn = self.computes[branch].lsn()
        # What was logged up to there reaches the safekeepers with the next commit at the latest.
        self.computes[branch].sql("SELECT pg_logical_emit_message(true, '', '')")
        return lsn

    def branch_from_the_past(self):
        point = self.retained_point()
        if point and len(self.computes) < BRANCHES_MAX:
            name = self.at(point, lambda: self.add_branch(point.branch, point.lsn))
            if name is not None:
                assert self.start_compute(name).sql(STATE) == point.state, point
                self.points_checked += 1

    def drop_branch(self):
        leaves = [branch for branch in self.parents if branch not in self.parents.values()]
        if leaves:
            branch = self.rng.choice(leaves)
            self.computes.pop(branch).destroy()
            self.http.timeline_delete(self.env.tenant, self.env.timelines.pop(branch))
            self.parents.pop(branch)
            self.points = [point for point in self.points if point.branch != branch]

    def restart_compute(self):
        compute = self.computes[self.rng.choice([branch for branch in self.computes if branch != "main"] or ["main"])]
        state = compute.sql(STATE)
        compute.restart()
        assert compute.sql(STATE) == state

    def kill_pageserver(self):
        self.env.pageserver.kill()
        self.env.pageserver.start()
        self.http.wait_active(self.env.tenant)

    def kill_safekeeper(self):
        node = self.rng.choice(self.env.safekeepers)
        node.kill()
        node.start()

    def detach_and_attach(self):
        self.http.tenant_detach(self.env.tenant)
        self.http.tenant_attach(self.env.tenant)
        self.http.wait_active(self.env.tenant)
        # Object storage has no settings.
        self.http.tenant_configure(self.env.tenant, **SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_soak(neon_env_builder: NeonEnvBuilder):
    neon_env_builder.safekeepers = 3
    neon_env_builder.with_local_fs().pageserver_overrides.append(EVICTION)
    env = neon_env_builder.start()
    away = "Cannot find|not found|is not active|will not become active"
    # Until what is to go has been uploaded.
    env.allowed_log_lines += ["wal receiver|walreceiver", away, "the disk is too full"]
    life = Life(env)
    life.http.tenant_configure(env.tenant, **SETTINGS)
    main = life.start_compute("main")
    main.sql(
        "CREATE TABLE t (i int, v text, n int)",
        f"INSERT INTO t SELECT i, repeat(md5(i::text), 4), 0 FROM generate_series(1, {ROWS}) i",
        "CREATE INDEX ON t (i)",
    )
    began, started_at = time.monotonic(), parse(main.lsn())
    with Bank(main).prepare() as bank:
        while time.monotonic() < began + SECONDS:
            life.step()
        bank.wait_for(20, timeout=120)
    bank.check()
    life.rest()
    while life.points:
        life.check_the_past()
        life.points = life.points[1:]
    states = {branch: compute.sql(STATE) for branch, compute in life.computes.items()}
    for branch, compute in life.computes.items():
        assert compute.restart().sql(STATE) == states[branch], branch
    remote = sum(env.remote_storage.objects("pageserver").values())
    print(
        f"{dict(life.counts)}, {life.points_checked} points checked, {(parse(main.lsn()) - started_at) / MB:.0f} MB of WAL on main,"
        f" at most {life.local_bytes_max / MB:.0f} MB on the pageserver's disk, {remote / MB:.0f} MB in object storage"
    )
    assert life.points_checked > 0
    assert life.counts["rest"] > 0 and remote > LOCAL_BYTES_MAX, "without eviction the disk would be over its bounds"
