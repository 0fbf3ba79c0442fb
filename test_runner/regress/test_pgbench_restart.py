"""TPC-B at length: the sums over all four tables agree before and after a restart."""

import pytest

from fixtures.neon_env import NeonEnvBuilder
from fixtures.whole_state import amcheck

SCALE, SECONDS, CLIENTS = 50, 60, 8

BALANCES = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_balances_agree_after_a_restart(neon_env_builder: NeonEnvBuilder):
    neon_env_builder.safekeepers = 3
    endpoint = neon_env_builder.start().endpoint("main").start()
    endpoint.pgbench("-q", "-i", "-s", str(SCALE))
    endpoint.pgbench("-c", str(CLIENTS), "-j", "2", "-T", str(SECONDS))
    (before,) = endpoint.sql(BALANCES)
    rows = "SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_history)"
    counts = endpoint.sql(rows)
    endpoint.restart()
    (after,) = endpoint.sql(BALANCES)
    assert len(set(after)) == 1
    assert after == before
    assert endpoint.sql(rows) == counts
    assert counts[0][0] == SCALE * 100_000 and counts[0][1] > 0
    amcheck(endpoint)
