#!/usr/bin/env python3
"""Proves native WAL redo against PostgreSQL: workloads on a stock server, every page compared.

For each profile of settings a throw-away cluster is made with wal_consistency_checking = all, its
data directory is kept as the base, workloads run, and wal_redo_check follows the archived WAL while it is
written, deletes what it has checked, and at the end compares all pages with the shut-down cluster's files.

Workloads: PostgreSQL's own regression and isolation suites (from the source package; failing tests do not
matter here, only their WAL does) and our own for what the suites do not reach (workloads/*.sql, pgbench).

    run.py --pg-test-source DIR [--profile NAME ...] [--workload NAME ...] [--checker BIN] [--work DIR]

DIR is what scripts/pg_test_source.sh makes and prints.

The last line of output is "ok" or "FAILED"; the exit status says the same. Record kinds not exercised
by any run and not listed in expected_absent.txt make the whole run fail (with --require-all).
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
# Settings of all profiles: small enough to churn, large enough to run the suites.
COMMON = {
    "wal_consistency_checking": "all",
    "max_prepared_transactions": "10",
    "max_connections": "60",
    "fsync": "off",
    "archive_mode": "on",
    "autovacuum_naptime": "1s",
    "log_min_messages": "fatal",
    "listen_addresses": "",
    "max_wal_size": "1GB",
    "track_commit_timestamp": "on",
}
PROFILES = {
    "default": {},
    "no_full_page_writes": {"full_page_writes": "off", "wal_compression": "lz4"},
    "logical_zstd": {"wal_level": "logical", "wal_compression": "zstd", "full_page_writes": "off"},
    "pglz_small_buffers": {"wal_compression": "pglz", "shared_buffers": "4MB", "checkpoint_timeout": "30s"},
    "hint_bits_logged": {"wal_log_hints": "on", "wal_compression": "lz4"},
}
SUITES = ["regress", "isolation"]


def find_pg_config() -> pathlib.Path:
    """Directory of the server's programs."""
    default = pathlib.Path("/usr/lib/postgresql/15/bin")
    return default if default.is_dir() else pathlib.Path(shutil.which("pg_config")).parent


class Server:
    """A throw-away cluster, owned by an unprivileged account when we are root."""

    def __init__(self, work: pathlib.Path, settings: dict[str, str], bindir: pathlib.Path):
        self.work = work
        self.bindir = bindir
        self.data = work / "data"
        self.base = work / "base"
        self.archive = work / "archive"
        self.sockets = pathlib.Path(tempfile.mkdtemp(prefix="redo", dir="/tmp"))
        self.port = free_port()
        self.account = "postgres" if os.geteuid() == 0 else None
        self.archive.mkdir()
        if self.account:
            for path in (work, self.archive, self.sockets):
                shutil.chown(path, self.account, self.account)
        self.run("initdb", "-D", self.data, "--no-locale", "-E", "UTF8", "-U", "postgres", "-A", "trust", "-N")
        settings = {
            **COMMON,
            **settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "archive_command": f"cp %p {self.archive}/%f.part && mv {self.archive}/%f.part {self.archive}/%f",
        }
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        subprocess.run(["cp", "-a", self.data, self.base], check=True)

    def run(self, program: str, *args, check: bool = True, timeout: int = 3600, cwd=None, env=None):
        """Runs a program of PostgreSQL under the server's account."""
        path = program if "/" in str(program) else self.bindir / program
        command = [str(part) for part in (path, *args)]
        user = self.account
        result = subprocess.run(
            command,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd or self.work,
            env=env,
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout[-4000:]}")
        return result

    def start(self):
        self.run("pg_ctl", "-D", self.data, "-l", self.work / "log", "-w", "-t", "120", "start")

    def stop(self):
        self.run("pg_ctl", "-D", self.data, "-w", "-t", "300", "-m", "fast", "stop")

    def sql(self, *args, check: bool = True):
        return self.run(
            "psql", "-X", "-q", "-h", self.sockets, "-p", self.port, "-U", "postgres", *args, check=check
        )

    def redo_start(self) -> str:
        """Where WAL after the base copy begins."""
        text = self.run("pg_controldata", "-D", self.base).stdout
        return re.search(r"REDO location:\s+(\S+)", text).group(1)

    def archive_rest(self):
        """Hands over what the archiver has not, the last segment included, and says that no more will come."""
        last_read = max((path.name for path in self.archive.iterdir() if len(path.name) == 24), default="")
        for segment in sorted((self.data / "pg_wal").iterdir()):
            if len(segment.name) == 24 and segment.name > last_read:
                part = self.archive / f"{segment.name}.part"
                shutil.copyfile(segment, part)
                part.rename(self.archive / segment.name)
        (self.archive / "end").touch()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Checker:
    """wal_redo_check beside the server."""

    def __init__(self, binary: pathlib.Path, server: Server, compare: bool, samples: pathlib.Path | None):
        command = [
            binary,
            server.archive,
            "--json",
            "--follow",
            "--delete",
            "--start",
            server.redo_start(),
            "--base",
            server.base,
        ]
        if samples:
            command += ["--samples", samples]
        if compare:
            command += ["--compare", server.data]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.output = {}
        self.threads = [
            threading.Thread(target=self._read, args=(name, stream))
            for name, stream in (("out", self.process.stdout), ("err", self.process.stderr))
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, name, stream):
        self.output[name] = stream.read()

    def result(self) -> dict:
        """Waits for the report."""
        for thread in self.threads:
            thread.join()
        status = self.process.wait()
        if status not in (0, 1):
            raise RuntimeError(f"wal_redo_check failed: {self.output['err']}")
        return json.loads(self.output["out"])


def copy_scripts(folder: pathlib.Path | None, target: pathlib.Path):
    """Copies our workloads, and what the suites need, to where the server's account can read it."""
    shutil.copytree(HERE / "workloads", target / "workloads")
    if folder is None:
        return
    for part in ("src/test/regress", "src/test/isolation"):
        shutil.copytree(folder / "source" / part, target / part)
    shutil.copytree(folder / "lib", target / "lib")


def run_suite(server: Server, suite: str, source: pathlib.Path, pgxs: pathlib.Path):
    """Runs one of PostgreSQL's suites from a copied test source; gives its summary line."""
    name, schedule, inputdir = {
        "regress": ("regress/pg_regress", "parallel_schedule", "src/test/regress"),
        "isolation": ("isolation/pg_isolation_regress", "isolation_schedule", "src/test/isolation"),
    }[suite]
    output = server.work / suite
    output.mkdir()
    if server.account:
        shutil.chown(output, server.account, server.account)
    result = server.run(
        pgxs / "src/test" / name,
        "--inputdir",
        source / inputdir,
        "--outputdir",
        output,
        "--bindir",
        server.bindir,
        "--dlpath",
        source / "lib",
        "--host",
        server.sockets,
        "--port",
        server.port,
        "--user",
        "postgres",
        "--dbname",
        f"{suite}_db",
        "--max-concurrent-tests",
        "20",
        "--schedule",
        source / inputdir / schedule,
        check=False,
    )
    lines = [line.strip(" =") for line in result.stdout.splitlines() if "tests" in line and ("passed" in line or "failed" in line)]
    return lines[-1] if lines else result.stdout[-500:]


def run_workload(server: Server, name: str, scripts: pathlib.Path):
    """Runs one of our own: a file of SQL in a database of its own, or a pgbench."""
    database = f"own_{name}"
    server.sql("-d", "postgres", "-c", f"CREATE DATABASE {database}")
    if name == "pgbench":
        target = ["-h", server.sockets, "-p", server.port, "-U", "postgres"]
        server.run("pgbench", *target, "-i", "-s", "2", database)
        server.run("pgbench", *target, "-c", "4", "-T", "8", "-n", database)
        return "ran"
    # Sessions of a workload run side by side: name.sql, name.2.sql, ...
    files = sorted(scripts.glob(f"{name}*.sql"))
    failures = []

    def session(path):
        result = server.sql("-d", database, "-v", "ON_ERROR_STOP=1", "-f", path, check=False)
        if result.returncode:
            failures.append(f"{path.name}: {result.stdout[-800:]}")

    threads = [threading.Thread(target=session, args=(path,)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError("; ".join(failures))
    return "ran"


def own_workloads() -> list[str]:
    names = {path.name.split(".")[0] for path in (HERE / "workloads").glob("*.sql")}
    return sorted(names) + ["pgbench"]


def run_profile(args, profile: str, source: pathlib.Path) -> dict:
    """One cluster from initdb to the report."""
    work = pathlib.Path(tempfile.mkdtemp(prefix=f"{profile}_", dir=args.work))
    os.chmod(work, 0o755)
    server = Server(work, PROFILES[profile], args.bindir)
    try:
        checker = Checker(args.checker, server, compare=True, samples=args.samples)
        server.start()
        try:
            for workload in args.workload:
                if workload in SUITES:
                    summary = run_suite(server, workload, source, args.pgxs)
                else:
                    summary = run_workload(server, workload, source / "workloads")
                print(f"{profile} {workload}: {summary}", flush=True)
        finally:
            server.stop()
            server.archive_rest()
        report = checker.result()
        print(f"{profile}: {report['summary']}", flush=True)
        for finding in report["findings"]:
            print("  ", finding, flush=True)
        return report
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(server.sockets, ignore_errors=True)


def expected_absent() -> set[str]:
    """Record kinds that no workload can make, with the reason behind a '#'."""
    lines = (HERE / "expected_absent.txt").read_text().splitlines()
    return {line.split("#")[0].strip() for line in lines} - {""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pg-test-source", type=pathlib.Path, help="PostgreSQL's suites, see scripts/pg_test_source.sh")
    parser.add_argument("--profile", action="append", choices=PROFILES, help="default: all")
    parser.add_argument("--workload", action="append", help="regress, isolation, pgbench or a file in workloads/")
    parser.add_argument("--checker", type=pathlib.Path, default="target/release/wal_redo_check")
    parser.add_argument("--work", type=pathlib.Path, help="where clusters are made, default a temporary place")
    parser.add_argument("--json", type=pathlib.Path, help="write all reports there")
    parser.add_argument("--samples", type=pathlib.Path, help="renew the samples for the tests of wal_redo (one profile)")
    parser.add_argument("--keep", action="store_true", help="leave the clusters")
    parser.add_argument("--require-all", action="store_true", help="fail if a kind of record was not exercised")
    args = parser.parse_args()
    args.bindir = find_pg_config()
    args.pgxs = args.bindir.parent / "lib/pgxs"
    args.profile = args.profile or list(PROFILES)
    args.workload = args.workload or SUITES + own_workloads()
    if args.pg_test_source is None and set(args.workload) & set(SUITES):
        parser.error("--pg-test-source is needed for PostgreSQL's suites")

    with tempfile.TemporaryDirectory(prefix="redo_source", dir=args.work) as source:
        os.chmod(source, 0o755)
        source = pathlib.Path(source)
        copy_scripts(args.pg_test_source, source)
        reports = {profile: run_profile(args, profile, source) for profile in args.profile}
    if args.json:
        args.json.write_text(json.dumps(reports))
    absent = set.intersection(*(set(report["not_exercised"]) for report in reports.values()))
    unexpected = sorted(absent - expected_absent())
    if unexpected:
        print("not exercised:", ", ".join(unexpected))
    passed = all(report["passed"] for report in reports.values()) and not (args.require_all and unexpected)
    print("ok" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
