"""A cluster whose daemons want tokens: everything works with the right one, nothing without."""

import subprocess

import psycopg2
import pytest

from fixtures.http_clients import ApiError, PageserverHttp, SafekeeperHttp
from fixtures.neon_env import NeonEnv, NeonEnvBuilder, new_id
from fixtures.tokens import sign


@pytest.fixture
def env(neon_env_builder: NeonEnvBuilder) -> NeonEnv:
    neon_env_builder.auth = True
    env = neon_env_builder.start()
    env.allowed_log_lines += [r"query handler for .* failed: ", "Error processing HTTP request", "authentication"]
    return env


def token(env: NeonEnv, scope: str, **claims: str) -> str:
    return sign(env.repo / "auth_private_key.pem", scope=scope, **claims)


def test_the_whole_path(env: NeonEnv):
    """neon_local hands out the tokens: computes, pageserver and safekeepers reach each other, also after restarts."""
    endpoint = env.endpoint("main").start()
    endpoint.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n")
    env.branch("side")
    env.pageserver.stop()
    env.pageserver.start()
    env.safekeepers[0].stop()
    env.safekeepers[0].start()
    endpoint.restart()
    assert endpoint.value("SELECT sum(n) FROM t") == 50005000
    assert env.endpoint("side").start().value("SELECT count(*) FROM t") == 10000
    # All tokens begin with the same encoded header.
    for path in [env.pageserver.log_path, env.safekeepers[0].log_path, endpoint.dir / "pg.log"]:
        text = path.read_text(errors="replace")
        assert "eyJ" not in text, f"a token is in {path.name}"


def test_http(env: NeonEnv):
    own, other = token(env, "tenant", tenant_id=env.tenant), token(env, "tenant", tenant_id=new_id())
    server_wide = token(env, "pageserverapi")
    strange_key = env.repo.parent / "strange.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(strange_key), "2048"], check=True, capture_output=True)
    forged = sign(strange_key, scope="pageserverapi")
    timeline = env.timelines["main"]

    def pageserver(given: str | None) -> PageserverHttp:
        return PageserverHttp(env.pageserver.http_port, given)

    def refused(call, *arguments) -> tuple[int, str]:
        with pytest.raises(ApiError) as failure:
            call(*arguments)
        return failure.value.status, failure.value.msg

    assert pageserver(None).status() == {"id": 1}
    assert refused(pageserver(None).tenants) == (401, "Unauthorized: missing authorization header")
    assert refused(pageserver(forged).tenants)[0] == 401
    assert refused(pageserver("nonsense").tenants)[0] == 401
    assert refused(pageserver(own).tenants)[0] == 403
    assert refused(pageserver(other).timeline, env.tenant, timeline)[0] == 403
    assert refused(pageserver(token(env, "safekeeperdata")).tenants)[0] == 403
    assert len(pageserver(server_wide).tenants()) == 1
    assert pageserver(own).timeline(env.tenant, timeline)["timeline_id"] == timeline

    port = env.safekeepers[0].http_port
    env.endpoint("main").start().sql("CREATE TABLE t (n int)")
    assert refused(SafekeeperHttp(port).timeline, env.tenant, timeline)[0] == 401
    assert refused(SafekeeperHttp(port, other).timeline, env.tenant, timeline)[0] == 403
    assert SafekeeperHttp(port, own).timeline(env.tenant, timeline)["tenant_id"] == env.tenant


def test_page_service(env: NeonEnv):
    command = f"get_last_record_rlsn {env.tenant} {env.timelines['main']}"

    def ask(port: int, password: str, options: str = "") -> list[tuple]:
        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user="u", dbname="d", password=password, options=options, connect_timeout=10
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(command if not options else "IDENTIFY_SYSTEM")
            return cursor.fetchall()

    own, other = token(env, "tenant", tenant_id=env.tenant), token(env, "tenant", tenant_id=new_id())
    port = env.pageserver.pg_port
    assert ask(port, own) and ask(port, token(env, "pageserverapi"))
    for bad in ["x", "", token(env, "tenant")]:
        with pytest.raises(psycopg2.OperationalError):
            ask(port, bad)
    with pytest.raises(psycopg2.Error, match="Tenant id mismatch"):
        ask(port, other)

    env.endpoint("main").start().sql("CREATE TABLE t (n int)")
    options = f"-c timeline_id={env.timelines['main']} tenant_id={env.tenant}"
    port = env.safekeepers[0].pg_port
    assert ask(port, own, options)
    assert ask(port, token(env, "safekeeperdata"), options)
    with pytest.raises(psycopg2.Error):
        ask(port, other, options)
    with pytest.raises(psycopg2.OperationalError):
        ask(port, "x", options)
