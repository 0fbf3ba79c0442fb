"""Whatever is killed, what was acknowledged is there."""

import random
import signal
import time

import pytest

from fixtures import processes
from fixtures.bank import Bank
from fixtures.neon_env import Background, NeonEnvBuilder


@pytest.fixture
def env3(neon_env_builder: NeonEnvBuilder):
    """A cluster with three safekeepers that flushes layers often."""
    neon_env_builder.safekeepers = 3
    neon_env_builder.tenant_settings = {"checkpoint_distance": 4 * 1024 * 1024, "compaction_period": "2s"}
    return neon_env_builder.start()


def test_kill_each_in_turn(env3):
    main = env3.endpoint("main").start()
    bank = Bank(main).prepare()
    with bank:
        bank.wait_for(50)
        env3.pageserver.kill()
        env3.pageserver.start()
        bank.wait_for(50)
        for safekeeper in env3.safekeepers:
            safekeeper.kill()
            bank.wait_for(50)
            safekeeper.start()
            bank.wait_for(50)
        processes.kill(main.walproposer_pid())
        bank.wait_for(50)
        main.kill()
        main.start()
        bank.wait_for(50)
    bank.check()
    main.restart()
    bank.check()


def test_kill_at_random(env3):
    seed = int(time.time())
    print(f"seed {seed}")
    rng = random.Random(seed)
    main = env3.endpoint("main").start()
    bank = Bank(main, seed=seed).prepare()

    def pageserver():
        env3.pageserver.kill()
        env3.pageserver.start()

    def safekeeper():
        node = rng.choice(env3.safekeepers)
        node.kill()
        time.sleep(rng.random())
        node.start()

    def compute():
        main.kill()
        main.start()

    def walproposer():
        processes.kill(main.walproposer_pid())

    with bank:
        for _ in range(12):
            bank.wait_for(rng.randint(1, 60))
            rng.choice([pageserver, safekeeper, safekeeper, compute, walproposer])()
        bank.wait_for(20)
    bank.check()
    main.restart()
    bank.check()


def test_commits_wait_for_a_majority(env3):
    main = env3.endpoint("main").start()
    main.sql("CREATE TABLE t (i int)")
    for safekeeper in env3.safekeepers[:2]:
        safekeeper.kill()
    insert = Background(main.sql, "INSERT INTO t VALUES (1)")
    time.sleep(3)
    assert insert.running, "a commit was acknowledged by one safekeeper of three"
    env3.safekeepers[0].start()
    insert.join(30)
    assert main.value("SELECT count(*) FROM t") == 1
    env3.safekeepers[1].start()
    main.restart()
    assert main.value("SELECT count(*) FROM t") == 1


def test_second_compute_fences_the_first(env3):
    first = env3.endpoint("first", branch="main").start()
    bank = Bank(first).prepare()
    with bank:
        bank.wait_for(50)
        second = env3.endpoint("second", branch="main").start()
        pid = first.dir / "postmaster.pid"
        processes.wait_until(lambda: not pid.exists() or not processes.alive(processes.pid_of(pid)),
                             "the fenced compute stops", 30)
        acknowledged = bank.progress()
        time.sleep(1)
        assert bank.progress() == acknowledged, "a fenced compute acknowledged a commit"
    bank.check(second)
    second.sql("INSERT INTO transfer VALUES (-1, 1, 2, 0)")
    assert second.value("SELECT count(*) FROM transfer WHERE id = -1") == 1


def test_stopped_first_compute_cannot_come_back(env3):
    """The first is frozen while the second takes over: thawed, it must not acknowledge anything."""
    first = env3.endpoint("first", branch="main").start()
    first.sql("CREATE TABLE t (i int)")
    connection = first.connect()
    frozen = [first.postmaster_pid]
    for pid in frozen:
        frozen.extend(processes.children(pid))
    for pid in frozen:
        processes.kill(pid, signal.SIGSTOP, wait=False)
    second = env3.endpoint("second", branch="main").start()
    second.sql("INSERT INTO t VALUES (2)")
    for pid in frozen:
        processes.kill(pid, signal.SIGCONT, wait=False)
    with pytest.raises(Exception), connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '20s'; INSERT INTO t VALUES (1)")
        if any("synchronous" in notice for notice in connection.notices):
            raise TimeoutError("the commit was not acknowledged by the quorum")
    assert second.sql("SELECT i FROM t") == [(2,)]


def test_everything_killed_at_once(env3):
    main = env3.endpoint("main").start()
    bank = Bank(main).prepare()
    with bank:
        bank.wait_for(200)
        main.kill()
    env3.pageserver.kill()
    for safekeeper in env3.safekeepers:
        safekeeper.kill()
    env3.start()
    main.start()
    bank.check()
    assert bank.acknowledged


def test_broker_away(env3):
    """etcd only helps nodes find each other: what has found each other goes on without it."""
    env3.allowed_log_lines.append("etcd|broker")
    main = env3.endpoint("main").start()
    bank = Bank(main).prepare()
    with bank:
        bank.wait_for(50)
        processes.kill(processes.pid_of(env3.repo / "etcd.pid"))
        bank.wait_for(100)
        env3.start()
        bank.wait_for(50)
    bank.check()
    main.restart()
    bank.check()


def test_after_a_stop_safekeepers_know_that_all_is_committed(neon_env_builder: NeonEnvBuilder):
    """Nobody but the walproposer could tell them, and the pageserver, and with it a branch, would wait for the last record."""
    env = neon_env_builder.start()
    main = env.endpoint("main")
    (safekeeper,) = env.safekeepers
    for i in range(15):
        main.start()
        main.sql(f"CREATE TABLE t{i} (i int)")
        main.stop()
        all_committed = lambda: safekeeper.position("commit_lsn") == safekeeper.position("flush_lsn")
        processes.wait_until(all_committed, f"the safekeeper knows of the last commit before stop {i}", 5)
    env.branch("end")
    assert env.endpoint("end").start().value("SELECT count(*) FROM pg_class WHERE relname LIKE 't__' OR relname LIKE 't_'") == 15
