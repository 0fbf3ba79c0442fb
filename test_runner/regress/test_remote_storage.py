"""Object storage is the truth: whatever becomes of the pageserver's disk, every row of every branch is there."""

import json
import shutil

import pytest
from fixtures import lsn
from fixtures.bank import Bank
from fixtures.http_clients import ApiError
from fixtures.neon_env import Endpoint, NeonEnv, NeonEnvBuilder
from fixtures.processes import wait_until
from fixtures.s3_proxy import KINDS, Fault, S3Proxy

CHECKSUM = "SELECT count(*), coalesce(sum(hashtext(i || v)), 0) FROM t"

# So small that a few seconds of work make layers of all kinds.
SMALL_LAYERS = {
    "checkpoint_distance": 1024 * 1024,
    "compaction_target_size": 1024 * 1024,
    "compaction_period": "1s",
    "compaction_threshold": 3,
}


def start_with_storage(builder: NeonEnvBuilder, *overrides: str) -> NeonEnv:
    """A cluster that keeps its layers in the storage chosen, or else in a directory."""
    if builder.remote_storage is None:
        builder.with_local_fs()
    builder.pageserver_overrides += overrides
    builder.tenant_settings |= SMALL_LAYERS
    return builder.start()


def layers_of(env: NeonEnv, branch: str) -> list[dict]:
    return env.pageserver.http().layers(env.tenant, env.timelines[branch])["historic_layers"]


def lose_disk(env: NeonEnv):
    """The pageserver dies and its disk with it; then it is there again, empty, and the tenant is attached."""
    shutil.rmtree(env.repo / "tenants")
    env.pageserver.kill()
    shutil.rmtree(env.repo / "tenants", ignore_errors=True)
    env.pageserver.start()
    http = env.pageserver.http()
    assert http.tenants() == []
    http.tenant_attach(env.tenant)
    http.wait_active(env.tenant)


def lose_safekeeper(env: NeonEnv, node):
    """A safekeeper dies and its disk with it; then it is there again, empty."""
    node.kill()
    shutil.rmtree(node.dir / env.tenant)
    node.start()


def check_survives_restart(main: Endpoint, bank: Bank, expected: list[tuple]):
    """All that was acknowledged is there, before and after the compute begins anew."""
    bank.check()
    assert main.sql(CHECKSUM) == expected
    main.restart()
    bank.check()
    assert main.sql(CHECKSUM) == expected


def check_objects(env: NeonEnv):
    """In the end there are just the objects that the indexes name, and they are sound."""
    tenant = f"tenants/{env.tenant}/timelines"

    def are_named() -> bool:
        objects = env.remote_storage.objects("pageserver")
        wanted = set()
        for timeline in env.timelines.values():
            index = f"{tenant}/{timeline}/index_part.json"
            layers = json.loads(env.remote_storage.read("pageserver", index))["timeline_layers"]
            wanted |= {index, *(f"{tenant}/{timeline}/{layer}" for layer in layers)}
        return set(objects) == wanted

    wait_until(are_named, "objects are those that indexes name", 60)
    for timeline in env.timelines.values():
        directory = env.repo / "tenants" / env.tenant / "timelines" / timeline
        env.pagectl("scrub", str(directory), "--remote-storage", env.remote_storage.table("pageserver"))


# The directory vanishes while the server is at work.
LOSS_OF_DISK = [r"No such file or directory", r"wal receiver|walreceiver"]


@pytest.mark.parametrize("storage", ["local_fs", "s3"])
def test_the_disk_is_lost_under_a_running_tenant(neon_env_builder: NeonEnvBuilder, request, storage: str):
    env = start_with_storage(neon_env_builder.with_storage(storage, request))
    env.allowed_log_lines += LOSS_OF_DISK
    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
    bank = Bank(main).prepare()
    points = {}
    with bank:
        for step in range(4):
            main.sql(f"INSERT INTO t SELECT i, repeat('{step}', 400) FROM generate_series({step}000, {step}999) i")
            bank.wait_for(50)
            name = f"b{step}"
            env.branch(name)
            branch = env.endpoint(name).start()
            branch.sql(f"UPDATE t SET v = 'branch {step}' WHERE i % 7 = 0")
            points[name] = branch.sql(CHECKSUM)
        expected = main.sql(CHECKSUM)
        lose_disk(env)
        bank.wait_for(50, timeout=120)
    check_survives_restart(main, bank, expected)
    for name, checksum in points.items():
        branch = next(endpoint for endpoint in env.endpoints if endpoint.name == name)
        branch.restart()
        assert branch.sql(CHECKSUM) == checksum, name


def test_a_safekeepers_disk_is_lost_with_the_pageservers(neon_env_builder: NeonEnvBuilder, request):
    neon_env_builder.safekeepers = 3
    env = start_with_storage(neon_env_builder.with_storage("s3", request))
    # The pageserver may ask the safekeeper before that has the timeline again, or for WAL from before its loss.
    env.allowed_log_lines += [*LOSS_OF_DISK, r"was not found in global map", r"is not on this safekeeper"]
    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
    bank, segment = Bank(main).prepare(), 16 * 1024 * 1024
    offloaded = lsn.parse(main.lsn()) // segment + 1
    with bank:
        step = 0
        while lsn.parse(main.lsn()) // segment < offloaded:
            main.sql(f"INSERT INTO t SELECT i, repeat('{step}', 900) FROM generate_series({step}000, {step}999) i")
            step += 1
        env.branch("other")
        survivor, lost = env.safekeepers[1], env.safekeepers[0]
        wait_until(lambda: survivor.position("backup_lsn") >= offloaded * segment, "WAL is offloaded", 60)
        bank.wait_for(20)
        expected = main.sql(CHECKSUM)
        lose_safekeeper(env, lost)
        lose_disk(env)
        bank.wait_for(50, timeout=120)
    check_survives_restart(main, bank, expected)
    assert env.endpoint("other").start().sql(CHECKSUM) == expected
    committed = survivor.position("commit_lsn")
    wait_until(lambda: lost.position("commit_lsn") >= committed, "the lost safekeeper has caught up", 60)


def test_troubles_of_the_s3_server_lose_nothing(neon_env_builder: NeonEnvBuilder, s3_server):
    with S3Proxy(s3_server.endpoint) as proxy:
        env = start_with_storage(neon_env_builder.with_s3(s3_server, endpoint=proxy.endpoint, timeout="2s"))
        env.allowed_log_lines += [*LOSS_OF_DISK, r"will retry|retries|attempt"]
        http, timeline = env.pageserver.http(), env.timelines["main"]
        main = env.endpoint("main").start()
        main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
        bank = Bank(main).prepare()
        with bank:
            for step, kind in enumerate(KINDS):
                proxy.fault = Fault(kind)
                main.sql(f"INSERT INTO t SELECT i, repeat('{step}', 400) FROM generate_series({step}000, {step}999) i")
                http.checkpoint(env.tenant, timeline)
                on_disk = http.timeline(env.tenant, timeline)["disk_consistent_lsn"]
                wait_until(lambda kind=kind: proxy.counts[kind] >= 3, f"requests meet {kind}", 60)
                bank.wait_for(20)
                if kind != "slow":
                    uploaded = http.timeline(env.tenant, timeline)["remote_consistent_lsn"]
                    assert lsn.parse(uploaded) < lsn.parse(on_disk), "nobody takes a failed upload for done"
                proxy.fault = None
                http.wait_uploaded(env.tenant, timeline, on_disk)
        bank.check()
        expected = main.sql(CHECKSUM)
        # From now on a request in three meets with something: attaching and reading get through all the same.
        proxy.fault, met = Fault("mixed", 0.3), proxy.met()
        while proxy.met() < met + 5:
            lose_disk(env)
            main.restart()
            assert main.sql(CHECKSUM) == expected
            bank.check()
        proxy.fault = None
        check_objects(env)


def test_detach_leaves_nothing_here_and_everything_there(neon_env_builder: NeonEnvBuilder):
    env = start_with_storage(neon_env_builder)
    http = env.pageserver.http()
    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 5000) i")
    expected = main.sql(CHECKSUM)
    main.stop()
    with pytest.raises(ApiError, match="already exists"):
        http.tenant_attach(env.tenant)
    http.tenant_detach(env.tenant)
    assert not (env.repo / "tenants" / env.tenant).exists()
    assert http.tenants() == []
    assert f'tenant_id="{env.tenant}"' not in http.metrics()
    env.pageserver.stop()
    env.pageserver.start()
    assert http.tenants() == []
    http.tenant_attach(env.tenant)
    http.wait_active(env.tenant)
    # Whoever counts the logical size may have been there already.
    histories = [layer["access_stats"]["residence_events_history"]["buffer"] for layer in layers_of(env, "main")]
    assert all((history[0]["status"], history[0]["reason"]) == ("Evicted", "LayerLoad") for history in histories)
    assert main.start().sql(CHECKSUM) == expected
    assert not all(layer["remote"] for layer in layers_of(env, "main"))


def test_an_ignored_tenant_comes_back_when_it_is_loaded(neon_env_builder: NeonEnvBuilder):
    env = start_with_storage(neon_env_builder)
    http = env.pageserver.http()
    main = env.endpoint("main").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 5000) i")
    expected = main.sql(CHECKSUM)
    main.stop()
    http.tenant_ignore(env.tenant)
    env.pageserver.stop()
    env.pageserver.start()
    assert http.tenants() == []
    http.tenant_load(env.tenant)
    http.wait_active(env.tenant)
    assert main.start().sql(CHECKSUM) == expected


def test_layers_are_evicted_and_come_back(neon_env_builder: NeonEnvBuilder):
    env = start_with_storage(neon_env_builder)
    http, timeline = env.pageserver.http(), env.timelines["main"]
    main = env.endpoint("main").set(shared_buffers="1MB").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
    main.sql("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 20000) i")
    expected = main.sql(CHECKSUM)
    http.checkpoint(env.tenant, timeline)
    http.wait_uploaded(env.tenant, timeline, http.timeline(env.tenant, timeline)["disk_consistent_lsn"])
    wait_until(
        lambda: any([http.layer_evict(env.tenant, timeline, name["layer_file_name"]) for name in layers_of(env, "main")]),
        "a layer is evicted",
    )
    remote = [layer for layer in layers_of(env, "main") if layer["remote"]]
    assert remote
    name = remote[0]["layer_file_name"]
    assert not (env.repo / "tenants" / env.tenant / "timelines" / timeline / name).exists()
    assert not http.layer_evict(env.tenant, timeline, name), "it is gone already"
    assert http.layer_download(env.tenant, timeline, name)
    assert not http.layer_download(env.tenant, timeline, name), "it is here already"
    with pytest.raises(ApiError, match="not found"):
        http.layer_evict(env.tenant, timeline, "nonsense")
    main.restart()
    assert main.sql(CHECKSUM) == expected
    stats = next(layer for layer in layers_of(env, "main") if layer["layer_file_name"] == name)["access_stats"]
    events = [event["status"] for event in stats["residence_events_history"]["buffer"]]
    assert events[-2:] == ["Evicted", "Resident"]


def test_a_tiny_disk_budget_holds(neon_env_builder: NeonEnvBuilder):
    budget = 6 * 1024 * 1024
    env = start_with_storage(
        neon_env_builder, f"disk_usage_based_eviction = {{max_resident_bytes = {budget}, period = '500ms'}}"
    )
    env.allowed_log_lines.append("the disk is too full")
    main = env.endpoint("main").set(shared_buffers="1MB").start()
    main.sql("CREATE TABLE t (i int PRIMARY KEY, v text)")
    for step in range(5):
        main.sql(f"INSERT INTO t SELECT i, repeat('{step}', 400) FROM generate_series({step * 5000}, {step * 5000 + 4999}) i")
    expected = main.sql(CHECKSUM)
    http, timeline = env.pageserver.http(), env.timelines["main"]
    http.checkpoint(env.tenant, timeline)

    def resident() -> int:
        here = [layer["layer_file_size"] for layer in layers_of(env, "main") if not layer["remote"]]
        return sum(here)

    wait_until(lambda: resident() <= budget, "the budget holds", 60)
    assert sum(layer["layer_file_size"] for layer in layers_of(env, "main")) > budget
    main.restart()
    assert main.sql(CHECKSUM) == expected
    wait_until(lambda: resident() <= budget, "the budget holds again", 60)


def test_a_deleted_timeline_leaves_no_object(neon_env_builder: NeonEnvBuilder):
    env = start_with_storage(neon_env_builder)
    http = env.pageserver.http()
    env.allowed_log_lines.append("Cannot delete timeline which has child timelines")
    timeline = env.branch("doomed")
    prefix = f"tenants/{env.tenant}/timelines/{timeline}/"

    def objects() -> list[str]:
        return [name for name in env.remote_storage.objects("pageserver") if name.startswith(prefix)]

    assert f"{prefix}index_part.json" in objects(), "a branch is in object storage when it is acknowledged"
    with pytest.raises(ApiError, match="child timelines"):
        http.timeline_delete(env.tenant, env.timelines["main"])
    http.timeline_delete(env.tenant, timeline)
    assert objects() == []
    env.pageserver.kill()
    env.pageserver.start()
    http.wait_active(env.tenant)
    assert [found["timeline_id"] for found in http.timelines(env.tenant)] == [env.timelines["main"]]
