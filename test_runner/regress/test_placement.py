"""Which CPUs the processes run on that hand a commit on."""

import os

from fixtures.neon_env import NeonEnv, NeonEnvBuilder

CPUS = sorted(os.sched_getaffinity(0))


def cpus_of(pid: int) -> list[int]:
    """The CPUs that the threads of a process may run on."""
    return sorted(set().union(*(os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{pid}/task"))))


def walsender_pid(endpoint) -> int:
    return endpoint.value("SELECT pid FROM pg_stat_replication WHERE application_name = 'walproposer'")


def test_several_safekeepers_take_turns(neon_env_builder: NeonEnvBuilder):
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    endpoint = env.endpoint("main").start()
    several = len(CPUS) > 1
    for node in env.safekeepers:
        assert cpus_of(node.pid) == (CPUS[-1:] if several else CPUS)
    first = CPUS[:1]
    assert (cpus_of(endpoint.walproposer_pid()), cpus_of(walsender_pid(endpoint))) == (first, first)
    # Those who do the work run anywhere.
    assert cpus_of(endpoint.value("SELECT pg_backend_pid()")) == CPUS
    assert cpus_of(env.pageserver.pid) == CPUS


def test_one_safekeeper_runs_anywhere(neon_simple_env: NeonEnv):
    endpoint = neon_simple_env.endpoint("main").start()
    pids = [endpoint.walproposer_pid(), walsender_pid(endpoint), neon_simple_env.safekeepers[0].pid]
    assert [cpus_of(pid) for pid in pids] == [CPUS] * 3
