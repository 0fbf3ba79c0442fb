"""Nonsense on every port: a clear error or a closed connection, and the daemon lives on."""

import random
import socket
import struct

import psycopg2
import pytest

from fixtures.http_clients import ApiError
from fixtures.neon_env import NeonEnv, new_id


def startup(**parameters) -> bytes:
    body = struct.pack("!i", 196608)
    for name, value in parameters.items():
        body += name.encode() + b"\0" + value.encode() + b"\0"
    body += b"\0"
    return struct.pack("!i", len(body) + 4) + body


def message(tag: bytes, body: bytes) -> bytes:
    return tag + struct.pack("!i", len(body) + 4) + body


def nonsense(rng: random.Random):
    """Bytes that no sane client sends."""
    good = startup(user="x", database="y")
    yield b"\0" * 16
    yield struct.pack("!i", 3)
    yield struct.pack("!i", 10_001) + b"x" * 10_001
    yield struct.pack("!i", -1)
    yield struct.pack("!ii", 12, 196608) + b"abcd"
    yield b"GET / HTTP/1.1\r\n\r\n"
    yield good[:-3]
    yield good + b"Q"
    yield good + message(b"Q", b"no terminator")
    yield good + b"Q" + struct.pack("!i", 3)
    yield good + b"Q" + struct.pack("!i", 0x7FFFFFFF)
    yield good + message(b"?", b"what")
    yield good + message(b"P", b"\0") + message(b"B", b"") + message(b"E", b"") + message(b"S", b"")
    yield good + message(b"Q", b"\xff\xfe\0")
    yield good + message(b"d", b"copy data out of place")
    for _ in range(30):
        yield rng.randbytes(rng.randint(1, 300))
        yield good + rng.randbytes(rng.randint(1, 300))


def throw(port: int, data: bytes):
    """Sends data and reads whatever comes until the peer closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(0.3)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass


def test_random_bytes_on_every_port(neon_simple_env: NeonEnv):
    env = neon_simple_env
    env.allowed_log_lines.append(r"query handler for|connection|protocol|startup")
    safekeeper = env.safekeepers[0]
    pids = env.pageserver.pid, safekeeper.pid
    rng = random.Random(1)
    for port in [env.pageserver.pg_port, env.pageserver.http_port, safekeeper.pg_port, safekeeper.http_port]:
        for data in nonsense(rng):
            throw(port, data)
    assert env.pageserver.http().status() == {"id": 1}
    assert safekeeper.http().status() == {"id": 1}
    assert (env.pageserver.pid, safekeeper.pid) == pids
    assert env.endpoint("main").start().value("SELECT 1") == 1


def test_pagestream_with_nonsense_inside(neon_simple_env: NeonEnv):
    env = neon_simple_env
    env.allowed_log_lines.append(r"query handler for")
    good = startup(user="x", database="y")
    command = message(b"Q", f"pagestream {env.tenant} {env.timelines['main']}\0".encode())
    relation = struct.pack("!BQIIIB", 1, 0, 1663, 5, 1259, 0)
    rng = random.Random(2)
    requests = [b"", b"\x00", b"\x63" + relation, b"\x02" + relation, b"\x02" + relation + b"\0" * 5,
                b"\x00" + relation[:-1] + b"\x09", b"\x03" + b"\xff" * 13,
                *(bytes([rng.randrange(4)]) + rng.randbytes(rng.randint(0, 40)) for _ in range(50))]
    for request in requests:
        throw(env.pageserver.pg_port, good + command + message(b"d", request))
    assert env.endpoint("main").start().value("SELECT count(*) > 0 FROM pg_class")


@pytest.mark.parametrize("command, error", [
    ("nonsense", "unknown command"),
    ("basebackup", "invalid param number"),
    ("basebackup x y", "x"),
    ("basebackup {new} {timeline}", "not found"),
    ("basebackup {tenant} {new}", "not found"),
    ("basebackup {tenant} {timeline} 0/1000", "LSN"),
    ("basebackup {tenant} {timeline} zero", "zero"),
    ("pagestream {new} {new}", "not found"),
    ("get_last_record_rlsn {tenant} {new}", "not found"),
])
def test_page_service_errors(neon_simple_env: NeonEnv, command: str, error: str):
    env = neon_simple_env
    env.allowed_log_lines.append(r"query handler for")
    text = command.format(tenant=env.tenant, timeline=env.timelines["main"], new=new_id())
    connection = env.pageserver.connect()
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error, match=error):
        if command.startswith("basebackup"):
            with open("/dev/null", "wb") as sink:
                cursor.copy_expert(text, sink)
        else:
            cursor.execute(text)
    connection.close()


def test_lsn_in_the_future(neon_env_builder):
    neon_env_builder.pageserver_overrides = ["wait_lsn_timeout='1s'"]
    env = neon_env_builder.start()
    env.allowed_log_lines.append(r"Timed out|Error processing HTTP request|query handler for")
    with pytest.raises(ApiError) as failure:
        env.pageserver.http().timeline_create(env.tenant, new_id(), env.timelines["main"], "7/0")
    assert "7/0" in failure.value.msg
    connection = env.pageserver.connect()
    with connection.cursor() as cursor, open("/dev/null", "wb") as sink, pytest.raises(psycopg2.Error, match="7/0"):
        cursor.copy_expert(f"basebackup {env.tenant} {env.timelines['main']} 7/0", sink)
    connection.close()


def test_http_errors(neon_simple_env: NeonEnv):
    env = neon_simple_env
    env.allowed_log_lines.append(r"Error processing HTTP request")
    http = env.pageserver.http()
    main = env.timelines["main"]

    def refused(status: int, call, *arguments, **more):
        with pytest.raises(ApiError) as failure:
            call(*arguments, **more)
        assert failure.value.status == status, failure.value
        return failure.value.msg

    assert "page not found" in refused(404, http.request, "GET", "/v1/nowhere")
    refused(404, http.timelines, new_id())
    refused(404, http.timeline, env.tenant, new_id())
    assert "tenant_id" in refused(400, http.timelines, "xyz")
    refused(409, http.tenant_create, env.tenant)
    refused(409, http.timeline_create, env.tenant, main)
    assert "json" in refused(400, http.request, "POST", f"/v1/tenant/{env.tenant}/timeline", data="{").lower()
    assert "before" in (text := refused(500, http.timeline_create, env.tenant, new_id(), main, "0/8")) or "less" in text
    refused(500, http.timeline_create, env.tenant, new_id(), new_id())
    safekeeper = env.safekeepers[0].http()
    refused(404, safekeeper.timeline, env.tenant, new_id())
    refused(400, safekeeper.timeline, "xyz", main)
