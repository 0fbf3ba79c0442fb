"""A full disk of the pageserver: nothing is lost, everybody can see it, and it passes without a restart."""

import time

import pytest

from fixtures.bank import Bank
from fixtures.http_clients import ApiError
from fixtures.lsn import parse
from fixtures.neon_env import CommandFailed, NeonEnv, NeonEnvBuilder
from fixtures.processes import wait_until
from fixtures.small_disk import PAGE

MB = 1024 * 1024
CHECKSUM = "SELECT count(*), coalesce(sum(hashtext(i || v)), 0) FROM {}"
SMALL_LAYERS = {
    "checkpoint_distance": MB,
    "compaction_target_size": MB,
    "compaction_period": "1s",
    "compaction_threshold": 3,
    "gc_period": "1s",
    "image_creation_threshold": 2,
}
# Full disks are worth a person's look, and so is what they keep from being done.
FULL = [r"disk is full", r"disk is too full", r"No space left on device", r"no room on the disk", r"cannot be compacted"]


def is_full(env: NeonEnv) -> bool:
    """What the pageserver says."""
    lines = env.pageserver.http().metrics().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("pageserver_disk_full ")) == "1"


def fill(main, table: str, megabytes: int):
    """A table of about so many megabytes."""
    main.sql(f"CREATE TABLE {table} (i int, v text)")
    main.sql(f"INSERT INTO {table} SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, {megabytes * 1000}) i")


def flushed(env: NeonEnv, branch: str = "main") -> bool:
    """Whether the pageserver has everything in files that it has."""
    info = env.pageserver.http().timeline(env.tenant, env.timelines[branch])
    return parse(info["disk_consistent_lsn"]) == parse(info["last_record_lsn"])


def test_all_goes_on_when_there_is_room_again(small_disk, neon_env_builder: NeonEnvBuilder):
    neon_env_builder.tenant_settings |= SMALL_LAYERS
    disk = small_disk(128 * MB)
    # What cannot be logged is lost, and lines may break off, but that is all.
    disk.host_log(neon_env_builder.init())
    env = disk.host(neon_env_builder)
    env.allowed_log_lines.append(".*")
    http, pid = env.pageserver.http(), env.pageserver.pid
    main = env.endpoint("main").set(shared_buffers="1MB").start()
    fill(main, "before", 8)
    expected = main.sql(CHECKSUM.format("before"))
    bank = Bank(main).prepare()
    with bank:
        http.checkpoint(env.tenant, env.timelines["main"])
        disk.fill()
        bank.wait_for(50)
        with pytest.raises(ApiError, match="No space left on device"):
            http.checkpoint(env.tenant, env.timelines["main"])
        wait_until(lambda: is_full(env), "the pageserver knows that its disk is full", 30)
        on_disk = http.timeline(env.tenant, env.timelines["main"])["disk_consistent_lsn"]
        with pytest.raises((ApiError, CommandFailed), match="No space left on device|cannot create"):
            env.branch("impossible")
        # Much less than what the safekeepers and the computes' backpressure allow, more than memory may hold.
        bank.wait_for(200)
        assert main.sql(CHECKSUM.format("before")) == expected, "what is there can be read"
        assert http.tenant(env.tenant)["state"] == "Active"
        now = http.timeline(env.tenant, env.timelines["main"])["disk_consistent_lsn"]
        assert parse(now) == parse(on_disk), "nothing is said to be on disk that is not"
        disk.release()
        wait_until(lambda: not is_full(env), "the pageserver knows that there is room", 60)
        bank.wait_for(50)
        assert env.pageserver.pid == pid
    bank.check()
    http.checkpoint(env.tenant, env.timelines["main"])
    wait_until(lambda: flushed(env), "everything is on disk", 60)
    env.branch("possible")
    main.restart()
    bank.check()
    assert main.sql(CHECKSUM.format("before")) == expected
    assert env.endpoint("possible").start().sql(CHECKSUM.format("before")) == expected


def test_killed_and_started_on_a_full_disk(small_disk, neon_env_builder: NeonEnvBuilder):
    neon_env_builder.tenant_settings |= SMALL_LAYERS
    disk = small_disk(128 * MB)
    env = disk.host(neon_env_builder)
    env.allowed_log_lines += FULL
    main = env.endpoint("main").start()
    bank = Bank(main).prepare()
    with bank:
        bank.wait_for(50)
        disk.fill()
        bank.wait_for(50)
        for _ in range(2):
            env.pageserver.kill()
            env.pageserver.start()
            env.pageserver.http().wait_active(env.tenant)
            bank.wait_for(20)
        disk.release()
        bank.wait_for(50)
    bank.check()
    main.restart()
    bank.check()


def test_layers_make_room_where_there_is_object_storage(small_disk, neon_env_builder: NeonEnvBuilder):
    """Nobody has configured eviction, and far more is written than there is room for."""
    neon_env_builder.tenant_settings |= SMALL_LAYERS
    size = 24 * MB
    disk = small_disk(size)
    env = disk.host(neon_env_builder.with_local_fs())
    env.allowed_log_lines += FULL
    pid = env.pageserver.pid
    main = env.endpoint("main").set(shared_buffers="1MB").start()
    bank, expected = Bank(main).prepare(), {}
    with bank:
        for step in range(6):
            fill(main, f"t{step}", 8)
            expected[f"t{step}"] = main.sql(CHECKSUM.format(f"t{step}"))
            bank.wait_for(20, timeout=120)
    layers = env.pageserver.http().layers(env.tenant, env.timelines["main"])["historic_layers"]
    assert sum(layer["layer_file_size"] for layer in layers) > 1.5 * size
    assert "to make room" in env.pageserver.log_path.read_text(errors="replace")
    # Each table comes back through the disk that is too small for all of them.
    main.restart()
    for table, checksum in expected.items():
        assert main.sql(CHECKSUM.format(table)) == checksum, table
    bank.check()
    assert env.pageserver.pid == pid


def test_attaching_waits_for_room(small_disk, neon_env_builder: NeonEnvBuilder):
    neon_env_builder.tenant_settings |= SMALL_LAYERS
    disk = small_disk(64 * MB)
    env = disk.host(neon_env_builder.with_local_fs())
    env.allowed_log_lines += FULL
    http = env.pageserver.http()
    main = env.endpoint("main").start()
    fill(main, "t", 4)
    expected = main.sql(CHECKSUM.format("t"))
    main.stop()
    http.tenant_detach(env.tenant)
    disk.fill()
    with pytest.raises(ApiError, match="cannot create the directory"):
        http.tenant_attach(env.tenant)
    # Room for the tenant's settings, but not for a timeline's metadata.
    disk.release()
    disk.fill(but=PAGE)
    http.tenant_attach(env.tenant)
    time.sleep(2)
    assert http.tenant(env.tenant)["state"] == "Attaching", "a full disk is nothing that breaks a tenant"
    disk.release()
    http.wait_active(env.tenant)
    assert main.start().sql(CHECKSUM.format("t")) == expected

