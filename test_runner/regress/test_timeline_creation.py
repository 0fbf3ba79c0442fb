"""A pageserver that dies while it creates a timeline leaves no half of one."""

import pytest
import requests

from fixtures.http_clients import ApiError
from fixtures.neon_env import NeonEnv, new_id


@pytest.mark.parametrize("failpoint", ["before-checkpoint-new-timeline", "after-timeline-uninit-mark-creation"])
@pytest.mark.parametrize("action", ["exit", "return"])
def test_creation_interrupted(neon_simple_env: NeonEnv, failpoint: str, action: str):
    env = neon_simple_env
    env.allowed_log_lines.append(r"failpoint|Error processing HTTP request|uninit")
    http = env.pageserver.http()
    http.request("PUT", "/v1/failpoints", json=[{"name": failpoint, "actions": action}])
    timeline = new_id()
    with pytest.raises((ApiError, requests.ConnectionError)):
        http.timeline_create(env.tenant, timeline)
    if action == "exit":
        env.pageserver.start()
        env.pageserver.http().wait_active(env.tenant)
        http = env.pageserver.http()
    else:
        http.request("PUT", "/v1/failpoints", json=[{"name": failpoint, "actions": "off"}])
    assert [info["timeline_id"] for info in http.timelines(env.tenant)] == [env.timelines["main"]]
    directory = env.repo / "tenants" / env.tenant / "timelines"
    assert [path.name for path in directory.iterdir()] == [env.timelines["main"]]
    assert http.timeline_create(env.tenant, timeline)["timeline_id"] == timeline
    env.pageserver.stop()
    env.pageserver.start()
    env.pageserver.http().wait_active(env.tenant)
    assert {info["timeline_id"] for info in env.pageserver.http().timelines(env.tenant)} == {
        env.timelines["main"], timeline}
    assert env.endpoint("main").start().value("SELECT 1") == 1
