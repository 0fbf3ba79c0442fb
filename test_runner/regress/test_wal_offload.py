"""Safekeepers put full WAL segments into object storage, one of them at a time, and serve old WAL from there."""

import psycopg2
import psycopg2.extras
import pytest

from fixtures import lsn
from fixtures.processes import wait_until

SEGMENT = 16 * 1024 * 1024


def fill_segments(endpoint, count):
    """Writes WAL until `count` more segments have been begun."""
    target = lsn.parse(endpoint.lsn()) // SEGMENT + count
    endpoint.sql("CREATE TABLE IF NOT EXISTS filler (t text)")
    while lsn.parse(endpoint.lsn()) // SEGMENT < target:
        endpoint.sql("INSERT INTO filler SELECT repeat(md5(g::text), 200) FROM generate_series(1, 1000) g")


def backup_segment(node):
    """Segments of the timeline before this one are known to be offloaded."""
    return node.position("backup_lsn") // SEGMENT


def commit_segment(node):
    return node.position("commit_lsn") // SEGMENT


def wait_for_offload(node, segment):
    wait_until(lambda: backup_segment(node) >= segment, f"segments before {segment} are offloaded", timeout=90)


def segment_name(number):
    return f"{1:08X}{number // 256:08X}{number % 256:08X}"


def leader(env):
    """The safekeeper that offloads, by what they last logged about it."""

    def find():
        for node in env.safekeepers:
            lines = [line for line in node.log_path.read_text().splitlines() if "offloading WAL of" in line]
            if lines and "no longer" not in lines[-1] and node.alive():
                return node
        return None

    return wait_until(find, "a safekeeper offloads")


def read_wal(node, start, end):
    """WAL between two positions as a receiver gets it from a safekeeper."""
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=node.pg_port,
        user="cloud_admin",
        dbname="postgres",
        options=f"-c tenant_id={node.env.tenant} timeline_id={node.env.timelines['main']}",
        connection_factory=psycopg2.extras.PhysicalReplicationConnection,
    )
    try:
        cursor = connection.cursor()
        cursor.start_replication_expert(f"START_REPLICATION PHYSICAL {lsn.text(start)}")
        received = bytearray()

        def more():
            while message := cursor.read_message():
                assert message.data_start == start + len(received)
                received.extend(message.payload)
            return len(received) >= end - start

        wait_until(more, f"WAL up to {lsn.text(end)} arrives", timeout=60, pause=0.01)
        return bytes(received[: end - start])
    finally:
        connection.close()


@pytest.mark.parametrize("storage", ["local_fs", "s3"])
def test_full_segments_are_offloaded_once_committed(neon_env_builder, request, storage):
    neon_env_builder.with_storage(storage, request).safekeepers = 3
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").start()
    fill_segments(endpoint, 3)
    first = env.safekeepers[0].position("timeline_start_lsn") // SEGMENT
    end = commit_segment(env.safekeepers[0])
    for node in env.safekeepers:
        wait_for_offload(node, end)
    endpoint.stop()

    # All full segments and nothing else; each as every safekeeper has it on disk.
    timeline = f"{env.tenant}/{env.timelines['main']}"
    wait_until(lambda: backup_segment(env.safekeepers[0]) == commit_segment(env.safekeepers[0]), "all is offloaded")
    end = commit_segment(env.safekeepers[0])
    objects = env.remote_storage.objects("safekeepers")
    assert objects == {f"{timeline}/{segment_name(number)}": SEGMENT for number in range(first, end)}
    for name in objects:
        contents = env.remote_storage.read("safekeepers", name)
        files = [node.dir / name for node in env.safekeepers]
        assert all(file.read_bytes() == contents for file in files if file.exists())

    # With no compute and nothing to do, nobody takes part.
    def metric(node):
        lines = node.http().metrics().splitlines()
        return next((line for line in lines if line.startswith("safekeeper_wal_backup_active")), "x 0").split()[-1]

    wait_until(lambda: all(metric(node) == "0" for node in env.safekeepers), "offloading has ended")


def test_another_takes_over_when_the_leader_dies(neon_env_builder):
    neon_env_builder.with_local_fs().safekeepers = 3
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").start()
    for _ in range(2):
        fill_segments(endpoint, 1)
        old = leader(env)
        old.kill()
        others = [node for node in env.safekeepers if node is not old]
        fill_segments(endpoint, 1)
        end = commit_segment(others[0])
        wait_for_offload(others[0], end)
        assert leader(env) is not old
        old.start()
        wait_for_offload(old, end)


def test_a_wiped_safekeeper_serves_old_wal_from_object_storage(neon_env_builder):
    neon_env_builder.with_local_fs().safekeepers = 3
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").start()
    one, two, wiped = env.safekeepers
    fill_segments(endpoint, 4)
    start = one.position("timeline_start_lsn")
    wait_for_offload(one, commit_segment(one))
    endpoint.stop()
    end = min(one.position("commit_lsn"), two.position("commit_lsn"))
    expected = read_wal(one, start, end)

    # Offloaded WAL goes from the disk, but for the segment that a safekeeper begins with when it starts.
    wiped.stop()
    directory = wiped.dir / env.tenant / env.timelines["main"]
    kept = segment_name(backup_segment(one) - 1)
    gone = sorted(path for path in directory.glob("0000*") if path.name < kept)
    assert len(gone) >= 2
    for path in gone:
        path.unlink()
    wiped.start()
    assert read_wal(wiped, start, end) == expected
    # From the middle of a segment, too.
    assert read_wal(wiped, start + SEGMENT + 4242, end) == expected[SEGMENT + 4242 :]

    # A segment that is missing there is an error, and the connection's only.
    env.remote_storage.delete("safekeepers", f"{env.tenant}/{env.timelines['main']}/{gone[0].name}")
    wiped.env.allowed_log_lines.append("cannot read WAL at .* from object storage")
    with pytest.raises((psycopg2.Error, TimeoutError)):
        read_wal(wiped, start, end)
    second = (start // SEGMENT + 1) * SEGMENT
    assert read_wal(wiped, second, end) == expected[second - start :]
