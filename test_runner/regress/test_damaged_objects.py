"""A byte changes in object storage: whoever needs it is told which object it is, nobody else notices, and when the
object is put right all is well again, without a restart. A byte that changes on the local disk is not noticed at all."""

import re

import psycopg2
import pytest

from fixtures.http_clients import ApiError
from fixtures.lsn import parse
from fixtures.neon_env import Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.processes import wait_until

CHECKSUM = "SELECT count(*), coalesce(sum(hashtext(i || v)), 0) FROM {}"
ROWS = 4000


def fill(main: Endpoint, table: str):
    main.sql(f"CREATE TABLE {table} (i int, v text)")
    main.sql(f"INSERT INTO {table} SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, {ROWS}) i")


def flush(env: NeonEnv, branch: str, lsn: str = "0/0") -> set[str]:
    """Brings all of a branch, at least up to `lsn`, to object storage; names of its layers."""
    http, timeline = env.pageserver.http(), env.timelines[branch]
    has = lambda: parse(http.timeline(env.tenant, timeline)["last_record_lsn"])
    wait_until(lambda: has() >= parse(lsn), "the pageserver has the WAL", 60)
    http.checkpoint(env.tenant, timeline)
    http.wait_uploaded(env.tenant, timeline, http.timeline(env.tenant, timeline)["disk_consistent_lsn"])
    return {layer["layer_file_name"] for layer in http.layers(env.tenant, timeline)["historic_layers"]}


class Site:
    """A tenant whose `main` has the tables `a` and `b`, each in a layer of its own, and a branch from between them."""

    def __init__(self, builder: NeonEnvBuilder):
        builder.tenant_settings |= {"compaction_period": "0s", "gc_period": "0s"}
        self.env = env = builder.start()
        self.main = env.endpoint("main").set(shared_buffers="1MB", autovacuum="off").start()
        committed = lambda: self.main.value("SELECT pg_current_wal_flush_lsn()")
        before = flush(env, "main", committed())
        fill(self.main, "a")
        with_a = flush(env, "main", committed())
        env.branch("branch")
        fill(self.main, "b")
        with_b = flush(env, "main", committed())
        # Checkpoints of computes may have made small layers of their own.
        self.layer_of_a = self.largest(with_a - before)
        self.layer_of_b = self.largest(with_b - with_a)
        self.expected = {table: self.read(table) for table in "ab"}
        self.branch = env.endpoint("branch").set(shared_buffers="1MB").start()

    def largest(self, names: set[str]) -> str:
        layers = self.env.pageserver.http().layers(self.env.tenant, self.env.timelines["main"])["historic_layers"]
        return max((layer["layer_file_size"], name) for layer in layers if (name := layer["layer_file_name"]) in names)[1]

    def read(self, table: str, endpoint: Endpoint | None = None) -> list[tuple]:
        return (endpoint or self.main).sql(CHECKSUM.format(table))

    def object(self, layer: str) -> str:
        return f"tenants/{self.env.tenant}/timelines/{self.env.timelines['main']}/{layer}"

    def file(self, layer: str):
        return self.env.repo / self.object(layer)

    def evict(self, layer: str):
        http, timeline = self.env.pageserver.http(), self.env.timelines["main"]
        wait_until(lambda: http.layer_evict(self.env.tenant, timeline, layer) or not self.file(layer).exists(), "evicted")

    def restart_computes(self):
        """So that pages come from the pageserver again."""
        self.main.restart()
        self.branch.restart()


def damaged(sound: bytes) -> bytes:
    """With one bit changed in the middle, where the blocks of the table are."""
    middle = len(sound) // 2
    return sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]


@pytest.mark.parametrize("storage", ["local_fs", "s3"])
def test_a_damaged_layer_in_object_storage(neon_env_builder: NeonEnvBuilder, request, storage: str):
    site = Site(neon_env_builder.with_storage(storage, request))
    env, name = site.env, site.object(site.layer_of_b)
    env.allowed_log_lines += [r"is damaged"]
    pid, sound = env.pageserver.pid, env.remote_storage.read("pageserver", name)
    # What is cached of the layer under its number is sound, and goes with the process.
    env.pageserver.stop()
    env.pageserver.start()
    env.pageserver.http().wait_active(env.tenant)
    pid = env.pageserver.pid
    site.restart_computes()
    site.evict(site.layer_of_b)
    env.remote_storage.write("pageserver", name, damaged(sound))
    with pytest.raises(psycopg2.Error, match=f"{re.escape(site.layer_of_b)} is damaged at offset"):
        site.read("b")
    # The same layer's other blocks, other layers, and other timelines.
    assert site.main.value("SELECT count(*) FROM b WHERE ctid < '(2,0)'") > 0
    assert site.read("a") == site.expected["a"]
    assert site.read("a", site.branch) == site.expected["a"]
    site.main.sql("CREATE TABLE c AS SELECT 1 i")
    assert "is damaged" in env.pageserver.log_path.read_text()
    env.remote_storage.write("pageserver", name, sound)

    def is_well() -> bool:
        try:
            return site.read("b") == site.expected["b"]
        except psycopg2.Error:
            return False

    wait_until(is_well, "the layer is read again", 60)
    site.restart_computes()
    assert site.read("b") == site.expected["b"]
    assert env.pageserver.pid == pid


def test_a_damaged_file_is_fetched_again(neon_env_builder: NeonEnvBuilder):
    site = Site(neon_env_builder.with_local_fs())
    env = site.env
    env.allowed_log_lines += [r"is damaged, will be downloaded again"]
    env.pageserver.stop()
    for layer in (site.layer_of_a, site.layer_of_b):
        file = site.file(layer)
        file.write_bytes(damaged(file.read_bytes()))
    env.pageserver.start()
    env.pageserver.http().wait_active(env.tenant)
    site.restart_computes()
    for table in "ab":
        assert site.read(table) == site.expected[table]
    assert site.read("a", site.branch) == site.expected["a"]
    assert env.pageserver.log_path.read_text().count("will be downloaded again") == 2


def test_a_damaged_index(neon_env_builder: NeonEnvBuilder):
    """Of a branch: it is left out and the others are attached. Of the root, on which all depend: the tenant is Broken."""
    site = Site(neon_env_builder.with_local_fs())
    env, http = site.env, site.env.pageserver.http()
    env.allowed_log_lines += [r"is unusable", r"cannot be loaded before it"]
    site.main.stop(), site.branch.stop()
    flush(env, "branch")
    http.tenant_detach(env.tenant)
    for branch in ("branch", "main"):
        timeline = env.timelines[branch]
        name = f"tenants/{env.tenant}/timelines/{timeline}/index_part.json"
        sound = env.remote_storage.read("pageserver", name)
        env.remote_storage.write("pageserver", name, damaged(sound))
        http.tenant_attach(env.tenant)
        wait_until(lambda: http.tenant(env.tenant)["state"] != "Attaching", "attached or not", 60)
        assert f"{name} is unusable" in env.pageserver.log_path.read_text()
        if branch == "branch":
            assert http.tenant(env.tenant)["state"] == "Active"
            assert site.main.start().sql(CHECKSUM.format("b")) == site.expected["b"]
            site.main.stop()
            with pytest.raises(ApiError, match="not found"):
                http.timeline(env.tenant, timeline)
        else:
            assert "Broken" in str(http.tenant(env.tenant)["state"])
        env.remote_storage.write("pageserver", name, sound)
        http.tenant_detach(env.tenant)
    http.tenant_attach(env.tenant)
    http.wait_active(env.tenant)
    site.main.start(), site.branch.start()
    assert {table: site.read(table) for table in "ab"} == site.expected
    assert site.read("a", site.branch) == site.expected["a"]
