"""Consensus between real processes: a recorded history under kills, freezes, take-overs and network cuts."""

import os
import random
import signal
import subprocess
import time
from contextlib import ExitStack

import pytest

from fixtures import processes
from fixtures.bank import Bank
from fixtures.neon_env import Endpoint, NeonEnv, NeonEnvBuilder, Safekeeper

CI_SECONDS = 20
NIGHTLY_SECONDS = 240


def tree(endpoint: Endpoint) -> list[int]:
    """All processes of a compute."""
    pids = [endpoint.postmaster_pid]
    for pid in pids:
        pids.extend(processes.children(pid))
    return pids


def send(pids: list[int], sig: int):
    for pid in pids:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            pass  # Backends come and go.


class Chaos:
    """Faults, one after the other, of the safekeepers and of the two computes that take turns."""

    def __init__(self, env: NeonEnv, seed: int):
        self.env, self.rng = env, random.Random(seed)
        self.computes = [env.endpoint("first", branch="main"), env.endpoint("second", branch="main")]
        self.bank = Bank(self.computes[0].start(), seed=seed).prepare()
        self.counts: dict[str, int] = {}

    def some_safekeepers(self) -> list[Safekeeper]:
        return self.rng.sample(self.env.safekeepers, self.rng.randint(1, len(self.env.safekeepers)))

    def kill_safekeepers(self):
        nodes = self.some_safekeepers()
        for node in nodes:
            node.kill()
        time.sleep(self.rng.random())
        for node in nodes:
            node.start()

    def freeze_safekeepers(self):
        pids = [node.pid for node in self.some_safekeepers()]
        send(pids, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 2))
        send(pids, signal.SIGCONT)

    def kill_compute(self):
        self.computes[0].kill()
        self.computes[0].start()

    def kill_walproposer(self):
        processes.kill(self.computes[0].walproposer_pid())

    def freeze_compute(self):
        pids = tree(self.computes[0])
        send(pids, signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 2))
        send(pids, signal.SIGCONT)

    def take_over(self):
        """Another compute while the first is frozen, which then wakes up to find itself fenced."""
        old, new = self.computes
        postmaster, frozen = old.postmaster_pid, tree(old)
        send(frozen, signal.SIGSTOP)
        try:
            new.start()
            self.bank.endpoint = new
        finally:
            send(frozen, signal.SIGCONT)
        processes.wait_until(lambda: not processes.alive(postmaster), "the fenced compute stops", 60)
        self.computes = [new, old]

    def run(self, seconds: float):
        faults = [
            self.kill_safekeepers,
            self.kill_safekeepers,
            self.freeze_safekeepers,
            self.freeze_safekeepers,
            self.kill_compute,
            self.kill_walproposer,
            self.freeze_compute,
            self.take_over,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.bank.wait_for(self.rng.randint(1, 40))
            fault = self.rng.choice(faults)
            self.counts[fault.__name__] = self.counts.get(fault.__name__, 0) + 1
            fault()
        self.bank.wait_for(20)


@pytest.mark.timeout(NIGHTLY_SECONDS + 360)
@pytest.mark.parametrize(
    ("safekeepers", "seconds"),
    [
        (3, CI_SECONDS),
        (5, CI_SECONDS),
        pytest.param(3, NIGHTLY_SECONDS, marks=pytest.mark.slow),
        pytest.param(5, NIGHTLY_SECONDS, marks=pytest.mark.slow),
    ],
)
def test_history(neon_env_builder: NeonEnvBuilder, safekeepers: int, seconds: int):
    neon_env_builder.safekeepers = safekeepers
    env = neon_env_builder.start()
    seed = int(time.time())
    print(f"seed {seed}")
    chaos = Chaos(env, seed)
    with chaos.bank:
        chaos.run(seconds)
    bank = chaos.bank
    print(f"{len(bank.acknowledged)} acknowledged, {len(bank.unknown)} unknown, {len(bank.refused)} refused")
    print(f"faults: {chaos.counts}")
    bank.check()
    chaos.computes[0].restart()
    bank.check()


class Namespace:
    """A safekeeper in a network namespace of its own, reached over a pair of virtual interfaces."""

    def __init__(self, node: Safekeeper, stack: ExitStack):
        self.node = node
        self.name = f"sk{os.getpid()}n{node.id}"
        self.inner = f"i{os.getpid()}n{node.id}"
        outer, subnet = f"o{os.getpid()}n{node.id}", f"10.{os.getpid() % 200 + 20}.{node.id}"
        self.address = f"{subnet}.2"
        added = self.ip("netns", "add", self.name, check=False)
        if added.returncode != 0:
            pytest.skip(f"no network namespaces here: ip netns add: {added.stderr.strip()}")
        stack.callback(self.ip, "netns", "del", self.name)
        self.ip("link", "add", outer, "type", "veth", "peer", "name", self.inner, "netns", self.name)
        self.ip("addr", "add", f"{subnet}.1/30", "dev", outer)
        self.ip("link", "set", outer, "up")
        self.inside("addr", "add", f"{self.address}/30", "dev", self.inner)
        self.inside("link", "set", "lo", "up")
        self.heal()

    @staticmethod
    def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)

    def inside(self, *arguments: str):
        self.ip("-n", self.name, *arguments)

    def cut(self):
        """Packets vanish, in both directions; nobody is told."""
        self.inside("link", "set", self.inner, "down")

    def heal(self):
        self.inside("link", "set", self.inner, "up")

    def move_in(self, stack: ExitStack) -> str:
        """Starts the safekeeper again inside; where it listens for computes."""
        node = self.node
        command = [word.replace("127.0.0.1:" + str(node.pg_port), f"{self.address}:{node.pg_port}")
                   for word in processes.command_line(node.pid)]
        node.kill()
        with open(node.log_path, "ab") as log:
            process = subprocess.Popen(["ip", "netns", "exec", self.name, *command],
                                       stdout=log, stderr=log, cwd=node.dir)
        stack.callback(process.wait, 20)
        stack.callback(process.kill)
        return f"{self.address}:{node.pg_port}"


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_network_cut(neon_env_builder: NeonEnvBuilder):
    """Two of three safekeepers can be cut off, one by one and together."""
    neon_env_builder.safekeepers = 3
    env = neon_env_builder.start()
    # The broker is not to be reached from inside.
    env.allowed_log_lines.append("etcd|broker")
    with ExitStack() as stack:
        cuttable = [Namespace(node, stack) for node in env.safekeepers[1:]]
        addresses = [f"127.0.0.1:{env.safekeepers[0].pg_port}"]
        addresses += [namespace.move_in(stack) for namespace in cuttable]
        main = env.endpoint("main").set(neon__safekeepers=",".join(addresses)).start()
        bank = Bank(main).prepare()
        with bank:
            bank.wait_for(50)
            for namespace in cuttable:
                namespace.cut()
                bank.wait_for(50)
                namespace.heal()
                bank.wait_for(50)
            for namespace in cuttable:
                namespace.cut()
            time.sleep(1)
            acknowledged = bank.progress()
            time.sleep(3)
            assert bank.progress() == acknowledged, "one safekeeper of three is no majority"
            cuttable[0].heal()
            bank.wait_for(50)
            # A new compute with the other majority: what only the first two have is there all the same.
            cuttable[1].heal()
            cuttable[0].cut()
            main.kill()
            main.start()
            bank.wait_for(50)
            cuttable[0].heal()
            bank.wait_for(50)
        bank.check()
        main.restart()
        bank.check()
        # Its last WAL needs a majority, which goes with the namespaces.
        main.stop()
