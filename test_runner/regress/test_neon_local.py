"""neon_local itself: what it prints, what it refuses, that it can be run again."""

import re

import psycopg2
import pytest

from fixtures.neon_env import CommandFailed, NeonEnv, NeonEnvBuilder, new_id


def test_init_twice_is_refused(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.init()
    with pytest.raises(CommandFailed, match="already exists. Perhaps already initialized"):
        env.init()


def test_start_is_repeatable_and_stop_too(neon_simple_env: NeonEnv):
    env = neon_simple_env
    assert "is already running" in env.neon_local("start")
    env.endpoint("main").start()
    env.neon_local("stop")
    assert "already stopped" in env.neon_local("stop")
    env.neon_local("start")
    assert "up and running" in env.neon_local("pageserver", "status")


def test_unknown_things_are_named(neon_simple_env: NeonEnv):
    env = neon_simple_env
    for arguments, message in [
        (["endpoint", "start", "x", "--branch-name", "nope"], "Found no timeline id for branch name 'nope'"),
        (["endpoint", "stop", "nope"], "postgres nope is not found"),
        (["timeline", "branch", "--branch-name", "x", "--ancestor-branch-name", "nope"], "branch name 'nope'"),
        (["timeline", "branch"], "No branch name provided"),
        (["timeline", "list", "--tenant-id", new_id()], "not found"),
        (["safekeeper", "start", "7"], "could not find safekeeper 7"),
        (["tenant", "create", "-c", "nonsense:1"], "Unrecognized tenant settings: nonsense"),
        (["tenant", "create", "--pg-version", "14"], "PostgreSQL 14 is not supported"),
        (["timeline", "branch", "--branch-name", "main"], "branch 'main' is already mapped"),
    ]:
        with pytest.raises(CommandFailed, match=re.escape(message)):
            env.neon_local(*arguments)


def test_lists(neon_simple_env: NeonEnv):
    env = neon_simple_env
    child = env.branch("child")
    grandchild = env.branch("grandchild", "child")
    tree = env.neon_local("timeline", "list")
    assert dict(re.findall(r"\s?(\S+)\s\[([^\]]+)\]", tree)) == {
        "main": env.timelines["main"], "child": child, "grandchild": grandchild}
    assert re.search(r"^┗━ @[0-9A-F/]+: child", tree, re.MULTILINE)
    endpoint = env.endpoint("main").start()
    header, row = env.neon_local("pg", "list").splitlines()
    assert header.split("  ")[0] == "NODE" and row.split()[:2] == ["main", f"127.0.0.1:{endpoint.port}"]
    assert row.endswith("running")
    endpoint.kill()
    assert env.neon_local("endpoint", "list").splitlines()[1].endswith("crashed")
    assert env.neon_local("tenant", "list").split() == [env.tenant, "Active"]


def test_failure_to_start_names_the_log(neon_env_builder: NeonEnvBuilder):
    env = neon_env_builder.init()
    (env.repo / "pageserver.toml").write_text("nonsense = 1\n")
    with pytest.raises(CommandFailed, match=r"pageserver.*start failed[\s\S]*see its log: .*pageserver\.log"):
        env.start()


def test_endpoint_leaves_nothing_behind(neon_simple_env: NeonEnv):
    env = neon_simple_env
    endpoint = env.endpoint("main").start()
    directory = endpoint.dir
    endpoint.destroy()
    assert not directory.exists()
    assert "main" not in env.neon_local("endpoint", "list").split("\n", 1)[1]


def test_superuser_by_another_name(neon_env_builder: NeonEnvBuilder):
    neon_env_builder.pageserver_overrides.append("initial_superuser_name='owner-1'")
    env = neon_env_builder.start()
    main = env.endpoint("main")
    assert f"host=127.0.0.1 port={main.port} user=owner-1 dbname=postgres" in env.neon_local("endpoint", "start", "main")
    with main.cursor(user="owner-1") as cursor:
        cursor.execute("SELECT usename FROM pg_user WHERE usesuper")
        assert cursor.fetchall() == [("owner-1",)]
    with pytest.raises(psycopg2.OperationalError, match='role "cloud_admin" does not exist'):
        main.connect()
