"""What is in files of the data directory, and yet outlives a compute: statistics, replication slots, replication origins."""

import time

import pytest

from fixtures import lsn
from fixtures.neon_env import Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.ports import PortDistributor
from fixtures.processes import wait_until
from fixtures.stock import StockServer

SEGMENT = 16 << 20


@pytest.fixture
def stock(test_dir, ports: PortDistributor):
    """A running stock server that can publish and subscribe."""
    server = StockServer(test_dir / "stock", ports.get(), wal_level="logical").init().start()
    yield server
    server.destroy()


@pytest.fixture
def publisher(neon_env_builder: NeonEnvBuilder) -> Endpoint:
    """A running compute with `wal_level = logical` and three safekeepers."""
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    return env.endpoint("main").set(wal_level="logical").start()


def restart_by(endpoint: Endpoint, manner: str):
    """Ends the compute in one of two ways, and starts it from a new base backup."""
    if manner == "stop":
        endpoint.stop()
    else:
        endpoint.kill()
    endpoint.start()


def test_statistics_survive_a_restart(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").start()
    endpoint.sql(
        "CREATE TABLE t (a int)",
        "INSERT INTO t SELECT generate_series(1, 1000)",
        "DELETE FROM t WHERE a <= 400",
        "SELECT count(*) FROM t",
        "SELECT pg_stat_force_next_flush()",
    )
    counters = "SELECT n_tup_ins, n_tup_del, n_live_tup, n_dead_tup, seq_scan FROM pg_stat_user_tables WHERE relname = 't'"
    before = endpoint.sql(counters)
    assert before[0][:4] == (1000, 400, 600, 400)
    endpoint.restart()
    assert endpoint.sql(counters) == before
    endpoint.restart()
    assert endpoint.sql(counters) == before


def test_autovacuum_counts_on_after_a_restart(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").set(autovacuum_naptime="1s").start()
    endpoint.sql(
        "CREATE TABLE t (a int) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0,"
        # ANALYZE would count the dead rows anew.
        " autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 1000000)",
        "INSERT INTO t SELECT generate_series(1, 2000)",
        "DELETE FROM t WHERE a <= 600",
    )
    endpoint.restart()
    # Neither half of the dead rows is enough alone.
    endpoint.sql("DELETE FROM t WHERE a <= 1200")
    count = "SELECT autovacuum_count FROM pg_stat_user_tables WHERE relname = 't'"
    wait_until(lambda: endpoint.value(count) == 1, "autovacuum has been at work", timeout=60)


@pytest.mark.parametrize("manner", ["stop", "kill"])
def test_subscriber_misses_nothing_while_the_publisher_restarts(publisher: Endpoint, stock: StockServer, manner: str):
    publisher.set(max_prepared_transactions=5).restart()
    publisher.sql("CREATE TABLE t (a int)", "CREATE PUBLICATION p FOR TABLE t", "INSERT INTO t VALUES (1)")
    stock.sql("CREATE TABLE t (a int)")
    stock.sql(f"CREATE SUBSCRIPTION s CONNECTION '{publisher.dsn()}' PUBLICATION p")

    def received() -> list[int]:
        return [a for (a,) in stock.sql("SELECT a FROM t ORDER BY a")]

    wait_until(lambda: received() == [1], "the first row arrives")
    stock.sql("ALTER SUBSCRIPTION s DISABLE")
    wait_until(lambda: not publisher.value("SELECT active FROM pg_replication_slots WHERE slot_name = 's'"), "idle")
    # Decoding must begin before the restart: at the start of a transaction that is still open then.
    publisher.sql("BEGIN", "INSERT INTO t VALUES (2)", "PREPARE TRANSACTION 'x'", "INSERT INTO t VALUES (3)")
    publisher.sql("SELECT pg_switch_wal()", "INSERT INTO t VALUES (4)")
    slot = "SELECT slot_name, plugin, slot_type, database FROM pg_replication_slots WHERE slot_type = 'logical'"
    before = publisher.sql(slot)
    wait_until(lambda: publisher.sql(slot) == before, "slots")
    restart_by(publisher, manner)
    assert publisher.sql(slot) == before
    publisher.sql("COMMIT PREPARED 'x'", "INSERT INTO t VALUES (5)")
    stock.sql("ALTER SUBSCRIPTION s ENABLE")
    wait_until(lambda: len(received()) >= 5, "all rows arrive", timeout=60)
    assert received() == [1, 2, 3, 4, 5]
    # A second restart, this time in the midst of it.
    restart_by(publisher, manner)
    publisher.sql("INSERT INTO t VALUES (6)")
    wait_until(lambda: len(received()) >= 6, "the last row arrives", timeout=60)
    assert received() == [1, 2, 3, 4, 5, 6]


def test_slot_is_decoded_from_where_its_reader_was(publisher: Endpoint):
    publisher.sql("CREATE TABLE t (a int)", "SELECT pg_create_logical_replication_slot('s', 'test_decoding')")
    publisher.sql("INSERT INTO t VALUES (1)")
    changes = "SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL, 'include-xids', '0')"
    first = publisher.sql(changes)
    assert first == [("BEGIN",), ("table public.t: INSERT: a[integer]:1",), ("COMMIT",)]
    publisher.sql("INSERT INTO t VALUES (2)", "ALTER TABLE t ADD b text", "INSERT INTO t VALUES (3, 'x')")
    publisher.restart()
    publisher.sql("INSERT INTO t VALUES (4, 'y')")
    inserts = [text for (text,) in publisher.sql(changes) if "INSERT" in text]
    assert inserts == [
        "table public.t: INSERT: a[integer]:2",
        "table public.t: INSERT: a[integer]:3 b[text]:'x'",
        "table public.t: INSERT: a[integer]:4 b[text]:'y'",
    ]


def test_safekeepers_keep_the_wal_that_a_slot_needs(publisher: Endpoint):
    env = publisher.env
    publisher.sql("SELECT pg_create_logical_replication_slot('s', 'test_decoding')", "CREATE TABLE t (a int)")
    needed = lsn.parse(publisher.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 's'")) // SEGMENT

    def removable() -> list[int]:
        """Up to which segment each safekeeper is told that the others have the WAL."""
        states = [node.http().timeline(env.tenant, env.timelines["main"]) for node in env.safekeepers]
        return [lsn.parse(state["peer_horizon_lsn"]) // SEGMENT for state in states]

    # A new slot is noticed within a second.
    time.sleep(2)

    for a in range(3):
        publisher.sql(f"INSERT INTO t VALUES ({a})", "SELECT pg_switch_wal()")
        time.sleep(1)
        assert max(removable()) <= needed
        publisher.restart()
    publisher.sql("SELECT pg_drop_replication_slot('s')", "INSERT INTO t VALUES (7)")
    wait_until(lambda: publisher.sql("INSERT INTO t VALUES (8)") == [] and min(removable()) > needed, "WAL is let go")


def test_dropped_slot_stays_dropped_and_a_branch_has_none(publisher: Endpoint):
    env = publisher.env
    for name in ("kept", "dropped"):
        publisher.sql(f"SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")
    publisher.restart()
    publisher.sql("SELECT pg_drop_replication_slot('dropped')")
    publisher.restart()
    slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical' ORDER BY 1"
    assert publisher.sql(slots) == [("kept",)]
    env.branch("branch")
    # Not even set up for logical decoding.
    assert env.endpoint("branch").start().sql(slots) == []
    assert env.endpoint("readonly", branch="main", lsn=publisher.lsn()).start().sql(slots) == []


@pytest.mark.parametrize("manner", ["stop", "kill"])
def test_subscriber_knows_how_far_it_has_come(neon_simple_env: NeonEnv, stock: StockServer, manner: str):
    subscriber = neon_simple_env.endpoint("main").start()
    stock.sql("CREATE TABLE t (a int)")
    stock.sql("CREATE PUBLICATION p FOR TABLE t")
    subscriber.sql("CREATE TABLE t (a int)")
    subscriber.sql(f"CREATE SUBSCRIPTION s CONNECTION '{stock.dsn()}' PUBLICATION p")

    def received() -> list[int]:
        return [a for (a,) in subscriber.sql("SELECT a FROM t ORDER BY a")]

    ready = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate = 'r'"
    wait_until(lambda: subscriber.value(ready) == 1, "the table is synchronized", timeout=60)
    for a in range(1, 6):
        stock.sql(f"INSERT INTO t VALUES ({a})")
    wait_until(lambda: received() == [1, 2, 3, 4, 5], "all rows arrive")
    progress = "SELECT remote_lsn FROM pg_replication_origin_status WHERE remote_lsn <> '0/0'"
    # A transaction that is already here must not be applied again.
    stock.stop()
    before = subscriber.sql(progress)
    assert len(before) == 1
    restart_by(subscriber, manner)
    assert subscriber.sql(progress) == before
    stock.start()
    stock.sql("INSERT INTO t VALUES (6)")
    wait_until(lambda: 6 in received(), "the last row arrives", timeout=60)
    assert received() == [1, 2, 3, 4, 5, 6]
